"""When, not what: each callback decides the moment of one thing."""

from trainer.callbacks.base import Callback
from trainer.callbacks.checkpoint import ModelCheckpoint
from trainer.callbacks.diagnostics import Diagnostics
from trainer.callbacks.early_stopping import EarlyStopping
from trainer.callbacks.ema import ExponentialMovingAverage
from trainer.callbacks.freeze import Freeze
from trainer.callbacks.lr_monitor import LearningRateMonitor
from trainer.callbacks.padding import Padding
from trainer.callbacks.profiler import Profiler
from trainer.callbacks.progress import ProgressBar
from trainer.callbacks.running_average import RunningAverage
from trainer.callbacks.summary import ModelSummary
from trainer.callbacks.throughput import Throughput

__all__ = [
    "Callback",
    "Diagnostics",
    "EarlyStopping",
    "ExponentialMovingAverage",
    "Freeze",
    "LearningRateMonitor",
    "ModelCheckpoint",
    "ModelSummary",
    "Padding",
    "Profiler",
    "ProgressBar",
    "RunningAverage",
    "Throughput",
]

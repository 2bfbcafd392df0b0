"""The Accelerator of a run, and what must be true of the machine before one is made."""

from __future__ import annotations

import os

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin

from utils.errors import UserError
from utils.launch import check_world


def make_accelerator(mixed_precision: str | None, find_unused_parameters: bool) -> Accelerator:
    """An Accelerator that leaves accumulation, data and schedules to the Trainer.

    Args:
        mixed_precision: "no", "fp16", "bf16"; None takes what `accelerate launch` was told.

    Raises:
        UserError: the launcher started more processes than can find each other.
    """
    accelerator = Accelerator(
        mixed_precision=mixed_precision,
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1, sync_with_dataloader=False),
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=find_unused_parameters)],
    )
    check_world(accelerator.num_processes)
    return accelerator


def set_determinism(deterministic: bool | str) -> None:
    """Ask torch for deterministic kernels; "warn" lets those without one run, with a warning."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=deterministic == "warn")
        torch.backends.cudnn.benchmark = False


def parse_duration(text: str | float | None) -> float | None:
    """Seconds of "HH:MM:SS", "DD:HH:MM:SS" or a plain number of seconds.

    Raises:
        UserError: it is neither.
    """
    if text is None or isinstance(text, (int, float)):
        return text
    try:
        seconds = 0.0
        for part, unit in zip(reversed(text.split(":")), (1, 60, 3600, 86400), strict=False):
            seconds += float(part) * unit
        return seconds
    except ValueError:
        raise UserError(f"trainer.max_time: expected seconds or HH:MM:SS, got {text!r}") from None

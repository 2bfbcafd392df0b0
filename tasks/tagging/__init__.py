"""Audio tagging: one class per target for a whole clip."""

from tasks.tagging.inference import TaggingPredictor
from tasks.tagging.sample_logger import SampleLogger
from tasks.tagging.trainer import TaggingTrainer

__all__ = ["SampleLogger", "TaggingPredictor", "TaggingTrainer"]

"""Speech recognition."""

from tasks.asr.inference import AsrPredictor
from tasks.asr.plots import RecognitionPlots
from tasks.asr.samples import TranscriptSamples
from tasks.asr.trainer import AsrTrainer

__all__ = ["AsrPredictor", "AsrTrainer", "RecognitionPlots", "TranscriptSamples"]

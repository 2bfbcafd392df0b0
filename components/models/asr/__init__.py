"""Speech recognition: encoders, heads, and the model that joins them."""

from components.models.asr.model import AsrModel, AsrOutput
from components.models.asr.types import Encoded, HeadOutput, Hypothesis

__all__ = ["AsrModel", "AsrOutput", "Encoded", "HeadOutput", "Hypothesis"]

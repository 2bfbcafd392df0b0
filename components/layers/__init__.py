"""Building blocks that models share."""

from components.layers.adaptation import Lora, TrainOnly
from components.layers.adaptive_norm import adaptive_layer_norm
from components.layers.attention import Attention, RmsNorm
from components.layers.feed_forward import FeedForward
from components.layers.lora import add_lora, merge_lora
from components.layers.masked_batch_norm import MaskedBatchNorm
from components.layers.masking import length_mask
from components.layers.rotary import rotary_tables, rotate
from components.layers.time_embedding import TimeEmbedding

__all__ = [
    "Attention",
    "FeedForward",
    "Lora",
    "MaskedBatchNorm",
    "RmsNorm",
    "TimeEmbedding",
    "TrainOnly",
    "adaptive_layer_norm",
    "add_lora",
    "length_mask",
    "merge_lora",
    "rotary_tables",
    "rotate",
]

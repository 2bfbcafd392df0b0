"""Building blocks that models share."""

from components.layers.masked_batch_norm import MaskedBatchNorm
from components.layers.masking import length_mask

__all__ = ["MaskedBatchNorm", "length_mask"]

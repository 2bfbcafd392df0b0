"""True lengths as masks."""

from __future__ import annotations

import torch
from torch import Tensor


def length_mask(lens: Tensor, max_len: int) -> Tensor:
    """`[B]` lengths to a boolean mask `[B, max_len]`, True where there is content (not padding)."""
    return torch.arange(max_len, device=lens.device) < lens.unsqueeze(1)

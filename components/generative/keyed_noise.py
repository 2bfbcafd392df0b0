"""Noise that belongs to an item."""

from __future__ import annotations

import torch
from torch import Tensor


def keyed_noise(seeds: Tensor, lens: Tensor, dim: int, device: torch.device | str = "cpu") -> Tensor:
    """Standard normal numbers by `seeds [B]`, `lens [B]` frames of `dim` each, zero behind them: `[B, L, D]` float32.

    An item's noise depends on its seed and length alone: the same in any batch, on any shard and device.
    """
    longest = int(lens.max())
    noise = torch.zeros(len(seeds), longest, dim)
    for row, seed, length in zip(noise, seeds.tolist(), lens.tolist()):
        row[:length] = torch.randn(length, dim, generator=torch.Generator().manual_seed(seed))
    return noise.to(device)

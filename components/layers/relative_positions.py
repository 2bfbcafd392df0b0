"""Positions as sinusoids.  Shapes: L queries, S keys, D model."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_LONGEST = 10_000.0  # turns of 2 pi: the slowest sinusoid


def sinusoids(positions: Tensor, dim: int) -> Tensor:
    """Sines, then cosines, of positions `[L]`, float32 `[L, dim]` (Vaswani et al. 2017, arXiv:1706.03762, 3.5, with the
    layout and the time scales of tensor2tensor, which SANM's public models have too)."""
    half = -(-dim // 2)
    rates = torch.arange(half, device=positions.device, dtype=torch.float32) * (-math.log(_LONGEST) / max(1, half - 1))
    angles = torch.outer(positions.float(), rates.exp())
    return torch.cat([angles.sin(), angles.cos()], dim=-1)[:, :dim]


def distance_sinusoids(num_queries: int, num_keys: int, dim: int, device: torch.device | str | None = None) -> Tensor:
    """Sinusoids of how far a query is behind a key, `[L + S - 1, dim]`, the farthest first; query `L - 1` stands at the
    place of key `S - 1`."""
    return sinusoids(torch.arange(num_keys - 1, -num_queries, -1, device=device), dim)


def by_key(scores: Tensor, num_keys: int) -> Tensor:
    """Scores of a query and a distance, `[..., L, L + S - 1]` in the order of `distance_sinusoids`, to those of a query
    and a key, `[..., L, S]` (the shift of Dai et al. 2019, arXiv:1901.02860, appendix B): a view of what is given."""
    *outer, row, column = scores.stride()
    first = scores.storage_offset() + (scores.shape[-2] - 1) * column
    # The row of the next query begins one distance earlier.
    return scores.as_strided((*scores.shape[:-1], num_keys), (*outer, row - column, column), first)

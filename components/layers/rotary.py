"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864).  Shapes: L positions, C channels of a head."""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_tables(
    num_positions: int, dim: int, device: torch.device | str | None = None, base: float = 10_000.0
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the angles of each position, both float32 `[num_positions, dim]`.

    Channel `c` turns together with channel `c + dim / 2`, by `position * base^(-2c / dim)`; `dim` is even.
    """
    frequencies = base ** (-torch.arange(0, dim, 2, device=device, dtype=torch.float32) / dim)
    angles = torch.outer(torch.arange(num_positions, device=device, dtype=torch.float32), frequencies)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """`x [..., L, C]` turned by the tables of `rotary_tables(L, C)`; computed in float32, returned as it came."""
    cos, sin = tables
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([-second, first], dim=-1) * sin).to(x.dtype)

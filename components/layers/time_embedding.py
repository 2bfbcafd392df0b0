"""The time of a flow or of a diffusion as a vector.  Shapes: B batch, D model."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class TimeEmbedding(nn.Module):
    """Sinusoids of `t` in [0, 1] and a small network (Peebles & Xie 2023, arXiv:2212.09748; Ho et al. 2020).

    Args:
        dim: D.
        num_frequencies: of sinusoids, from one turn over 2 pi thousandths of the way down to one over ten thousand.
    """

    def __init__(self, dim: int, num_frequencies: int = 128) -> None:
        super().__init__()
        self.num_frequencies = num_frequencies
        self.net = nn.Sequential(nn.Linear(2 * num_frequencies, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, t: Tensor) -> Tensor:
        """`[B]` to `[B, D]`."""
        steps = torch.arange(self.num_frequencies, device=t.device, dtype=torch.float32) / self.num_frequencies
        angles = 1000 * t.float().unsqueeze(1) * torch.exp(-math.log(10_000) * steps)
        return self.net(torch.cat([angles.cos(), angles.sin()], dim=1).to(self.net[0].weight.dtype))

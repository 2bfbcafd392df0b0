"""The per-frame network of a transformer.  Shapes: D model."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import gelu


class FeedForward(nn.Module):
    """Two linear maps with GELU between, gated (GEGLU, Shazeer 2020, arXiv:2002.05202) or not.

    Args:
        dim: D.
        ratio: hidden width over D.
        gated: multiply the hidden layer by another, linear one: half as many parameters again.
    """

    def __init__(self, dim: int, ratio: float = 4.0, gated: bool = False) -> None:
        super().__init__()
        hidden = int(dim * ratio)
        self.hidden = nn.Linear(dim, hidden)
        self.gate = nn.Linear(dim, hidden) if gated else None
        self.out = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., D]` to `[..., D]`."""
        hidden = gelu(self.hidden(x))
        return self.out(hidden if self.gate is None else hidden * self.gate(x))

"""The memory block of SANM.  Shapes: B batch, L frames, D channels."""

from __future__ import annotations

from torch import Tensor, nn

from components.layers.depthwise_conv import DepthwiseConv, FrameCache
from components.layers.dropout import Dropout


class FsmnMemory(nn.Module):
    """A frame and a weighted sum of its neighbours, channel by channel: the feed-forward sequential memory network
    within SANM (Gao et al. 2020, arXiv:2006.01713, 2.2).

    Args:
        dim: D.
        kernel_size: frames of the sum, its own among them.
        num_before: those before its own; None: half of them, `kernel_size - 1`: nothing ahead.
        dropout: on what comes out.
    """

    def __init__(self, dim: int, kernel_size: int = 11, num_before: int | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv = DepthwiseConv(dim, kernel_size, num_before, bias=False)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, padding: Tensor | None = None, cache: FrameCache | None = None) -> Tensor:
        """`[B, L, D]` to the same, zero where `padding`, bool `[B, L, 1]`, is True; `cache` holds what was before."""
        if padding is not None:
            x = x.masked_fill(padding, 0)
        x = self.dropout(x + self.conv(x, cache))
        return x if padding is None else x.masked_fill(padding, 0)

"""The Conformer's convolution (Gulati et al. 2020, arXiv:2005.08100, 2.2).  Shapes: B batch, L frames, D model."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import glu, silu

from components.layers.depthwise_conv import DepthwiseConv, FrameCache
from components.layers.frame_norm import FrameBatchNorm, FrameGroupNorm
from utils.errors import UserError


class ConvolutionModule(nn.Module):
    """A gated linear unit, a depthwise convolution, normalisation, swish, and a linear map; padding is not seen.

    Args:
        dim: D.
        kernel_size: frames that it sees; odd, unless causal.
        norm: behind the convolution: "batch", "layer" (a frame by itself) or "group" (a clip by itself).
        causal: see nothing ahead.
        num_groups: of "group".

    Raises:
        UserError: a setting that is not among these.
    """

    def __init__(
        self, dim: int, kernel_size: int = 15, norm: str = "batch", causal: bool = False, num_groups: int = 1
    ) -> None:
        super().__init__()
        if norm not in ("batch", "layer", "group"):
            raise UserError(f"norm: expected batch, layer or group, got {norm!r}")
        if norm == "group" and causal:
            raise UserError("norm: group looks at a whole clip, which is not causal; use layer or batch")
        self.gate = nn.Linear(dim, 2 * dim)
        self.conv = DepthwiseConv(dim, kernel_size, kernel_size - 1 if causal else None)
        if norm == "layer":
            self.norm = nn.LayerNorm(dim)
        else:
            self.norm = FrameBatchNorm(dim) if norm == "batch" else FrameGroupNorm(num_groups, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, padding: Tensor | None = None, cache: FrameCache | None = None) -> Tensor:
        """`[B, L, D]` to the same; `padding [B, L, 1]` is True where there is nothing, `cache` has what was before."""
        x = glu(self.gate(x), dim=-1)
        if padding is not None:
            x = x.masked_fill(padding, 0)  # the convolution of a clip alone finds zeros behind its end
        x = self.conv(x, cache)
        x = self.norm(x) if isinstance(self.norm, nn.LayerNorm) else self.norm(x, padding)
        return self.out(silu(x))

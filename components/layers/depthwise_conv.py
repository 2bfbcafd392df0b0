"""Convolution in time, each channel by itself.  Shapes: B batch, L frames, D channels, K kernel."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad

from utils.errors import UserError


class FrameCache:
    """The frames before those at hand, `[B, n, D]`, or None before the first."""

    def __init__(self) -> None:
        self.frames: Tensor | None = None


class DepthwiseConv(nn.Module):
    """A depthwise convolution of `[B, L, D]` that makes as many frames as it is given.

    Args:
        dim: D.
        kernel_size: K.
        num_before: frames before its own that an output frame sees, of the `K - 1` others; None: half of them.
        bias: whether to add one.

    Raises:
        UserError: an even kernel has no half, or `num_before` is not within the kernel.
    """

    def __init__(self, dim: int, kernel_size: int, num_before: int | None = None, bias: bool = True) -> None:
        super().__init__()
        if num_before is None and kernel_size % 2 == 0:
            raise UserError(f"kernel_size must be odd, got {kernel_size}")
        self.num_before = kernel_size // 2 if num_before is None else num_before
        if not 0 <= self.num_before < kernel_size:
            raise UserError(f"a kernel of {kernel_size} frames can not see {num_before} before its own")
        self.num_behind = kernel_size - 1 - self.num_before
        self.weight = nn.Parameter(torch.empty(dim, 1, kernel_size))
        self.bias = nn.Parameter(torch.empty(dim)) if bias else None
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(kernel_size**-0.5), kernel_size**-0.5)

    def forward(self, x: Tensor, cache: FrameCache | None = None) -> Tensor:
        """`[B, L, D]` to the same; beyond its ends are zeros or, before its start, the frames of `cache`."""
        before = self.num_before
        if cache is not None and before:
            assert self.num_behind == 0, "frames behind the last are not there yet"
            kept = x.new_zeros(len(x), before, x.shape[2]) if cache.frames is None else cache.frames
            x = torch.cat([kept, x], dim=1)
            cache.frames, before = x[:, -before:], 0
        # With the channels last, as they lie, torch's 2-d kernels are several times as fast as its 1-d ones.
        symmetric = before == self.num_behind
        if not symmetric:
            x = pad(x, (0, 0, before, self.num_behind))
        image, padding = x.transpose(1, 2).unsqueeze(2), (0, before if symmetric else 0)
        return conv2d(image, self.weight.unsqueeze(2), self.bias, padding=padding, groups=len(self.weight))[:, :, 0].mT

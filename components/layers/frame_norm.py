"""Normalisation over the true frames.  Shapes: B batch, L frames, D channels, G groups."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm

_frozen = 0


@contextmanager
def frozen_statistics() -> Iterator[None]:
    """Within, no `FrameBatchNorm` counts what it sees: for a forward that is done a second time, by checkpointing."""
    global _frozen
    _frozen += 1
    try:
        yield
    finally:
        _frozen -= 1


class FrameBatchNorm(nn.Module):
    """Batch normalisation of `[B, L, D]` whose statistics are those of the true frames, of this process.

    Parameters and buffers have the names of `torch.nn.BatchNorm1d`, with which it agrees where nothing is padded.
    """

    def __init__(self, dim: int, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.register_buffer("running_mean", torch.zeros(dim))
        self.register_buffer("running_var", torch.ones(dim))

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """`[B, L, D]` to the same; frames where `padding`, bool `[B, L, 1]`, is True do not count and hold anything."""
        if not self.training:
            scale = self.weight * torch.rsqrt(self.running_var + self.eps)
            return torch.addcmul(self.bias - self.running_mean * scale, x, scale).to(x.dtype)
        if padding is not None or x.shape[:2].numel() == 1:
            return self._over_true_frames(x, x.new_zeros(1, 1, 1, dtype=torch.bool) if padding is None else padding)
        momentum = 0.0 if _frozen else self.momentum
        statistics = self.running_mean, self.running_var
        return batch_norm(x.flatten(0, 1), *statistics, self.weight, self.bias, True, momentum, self.eps).view(x.shape)

    def _over_true_frames(self, x: Tensor, padding: Tensor) -> Tensor:
        given, x = x.dtype, x.float()
        count = padding.numel() - padding.sum()
        mean = x.masked_fill(padding, 0).sum((0, 1)) / count
        # Two passes, as one would lose the variance of channels far from zero.
        centred = (x - mean).masked_fill(padding, 0)
        var = centred.square().sum((0, 1)) / count
        if not _frozen:
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(var * (count / (count - 1).clamp(min=1)), self.momentum)
        return torch.addcmul(self.bias, centred, self.weight * torch.rsqrt(var + self.eps)).to(given)


class FrameGroupNorm(nn.Module):
    """Group normalisation of `[B, L, D]`, over a clip's true frames and the channels of a group (Wu & He 2018,
    arXiv:1803.08494); with as many groups as channels, instance normalisation.

    Parameters have the names of `torch.nn.GroupNorm`, with which it agrees where nothing is padded.
    """

    def __init__(self, num_groups: int, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_groups, self.eps = num_groups, eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """`[B, L, D]` to the same; frames where `padding`, bool `[B, L, 1]`, is True do not count and hold anything."""
        if padding is None:
            # Not that of `torch.nn.functional`, which refuses a clip of one frame.
            return torch.group_norm(x.mT, self.num_groups, self.weight, self.bias, self.eps).mT
        grouped, outside = x.float().unflatten(-1, (self.num_groups, -1)), padding.unsqueeze(-1)
        count = ((~outside).sum(1, keepdim=True) * grouped.shape[-1]).clamp(min=1)
        mean = grouped.masked_fill(outside, 0).sum((1, 3), keepdim=True) / count
        centred = (grouped - mean).masked_fill(outside, 0)
        var = centred.square().sum((1, 3), keepdim=True) / count
        normal = (centred * torch.rsqrt(var + self.eps)).flatten(2)
        return torch.addcmul(self.bias, normal, self.weight).to(x.dtype)

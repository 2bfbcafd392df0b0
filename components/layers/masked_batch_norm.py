"""Batch normalisation that does not count padding.  Shapes: B batch, C channels, L frames, F mels."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MaskedBatchNorm(nn.Module):
    """Batch normalisation over `[B, C, L, F]` whose statistics are those of the true frames.

    Expects zeros at the padded frames and leaves zeros there. Parameters and buffers have the names of
    `torch.nn.BatchNorm2d`, with which it agrees where nothing is padded. Statistics are per process.
    """

    def __init__(self, num_channels: int, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))
        self.register_buffer("running_mean", torch.zeros(num_channels))
        self.register_buffer("running_var", torch.ones(num_channels))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Normalise `x [B, C, L, F]`, zero where `mask [B, 1, L, 1]` is 0."""
        mean, var = self._batch_statistics(x, mask) if self.training else (self.running_mean, self.running_var)
        scale = self.weight * torch.rsqrt(var + self.eps)
        shift = self.bias - mean * scale
        return torch.addcmul(shift.view(1, -1, 1, 1) * mask, x, scale.view(1, -1, 1, 1)).to(x.dtype)

    def _batch_statistics(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        x = x.float()
        count = mask.sum() * x.shape[-1]
        mean = x.sum((0, 2, 3)) / count  # the padding adds nothing
        # Two passes, as one would lose the variance of channels far from zero.
        var = ((x - mean.view(1, -1, 1, 1)) * mask).square().sum((0, 2, 3)) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * (count / (count - 1).clamp(min=1)), self.momentum)
        return mean, var

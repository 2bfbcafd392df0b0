"""Cnn6 of PANNs (Kong et al. 2020, arXiv:1912.10211).  Shapes: B batch, C channels, L frames, F mels, D model."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, pad
from torch.utils.checkpoint import checkpoint

from components.layers import MaskedBatchNorm, length_mask


class PooledConv(nn.Module):
    """A 5x5 convolution, normalisation, ReLU, and a 2x2 average pool: n becomes n // 2."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 5, padding=2, bias=False)
        self.bn1 = MaskedBatchNorm(out_channels)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """`[B, C, L, F]`, zero at padded frames, to `[B, C', L // 2, F // 2]`; `mask` is that of the input."""
        return avg_pool2d(torch.relu(self.bn1(self.conv1(x) * mask, mask)), 2)


class Cnn6(nn.Module):
    """Four convolutions of 5x5 with average pooling between, as in PANNs but for the padding, which is never seen.

    Clips of fewer than `2^blocks` frames are brought to that length with zero frames.

    Args:
        num_features: F of the frontend.
        channels: of each block; every block halves frames and mels.
        dropout: after each block.
    """

    def __init__(self, num_features: int, channels: Sequence[int] = (64, 128, 256, 512), dropout: float = 0.2) -> None:
        super().__init__()
        self.bn0 = MaskedBatchNorm(num_features)
        widths = [1, *channels]
        self.blocks = nn.ModuleList(PooledConv(a, b) for a, b in pairwise(widths))
        self.dropout = nn.Dropout(dropout)
        self.embed_dim = widths[-1]
        self.gradient_checkpointing = False

    def gradient_checkpointing_enable(self) -> None:
        """Recompute each block in the backward pass instead of keeping what is inside it."""
        self.gradient_checkpointing = True

    def forward(self, features: Tensor, feature_lens: Tensor) -> tuple[Tensor, Tensor]:
        """`[B, L, F]`, `[B]` to hidden `[B, L', D]` and hidden_lens `[B]`, each `max(L, 2^blocks) // 2^blocks`."""
        shortest = 2 ** len(self.blocks)
        x = pad(features, (0, 0, 0, max(0, shortest - features.shape[1]))).transpose(1, 2).unsqueeze(3)
        x = self.bn0(x, self._mask(feature_lens, x))
        x, lens = x.permute(0, 3, 2, 1), feature_lens.clamp(min=shortest)  # [B, 1, L, F]
        for block in self.blocks:
            mask = self._mask(lens, x)
            if self.gradient_checkpointing and self.training:
                x = checkpoint(block, x, mask, use_reentrant=False)
            else:
                x = block(x, mask)
            lens = lens // 2
            # Of an odd number of frames the last has been pooled with padding, and counts no longer.
            x = self.dropout(x) * self._mask(lens, x)
        return x.mean(dim=3).transpose(1, 2), lens

    @staticmethod
    def _mask(lens: Tensor, x: Tensor) -> Tensor:
        return length_mask(lens, x.shape[2])[:, None, :, None].to(x.dtype)

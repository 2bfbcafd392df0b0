"""A small residual convolutional network.  Shapes: B batch, C channels, L frames, F mels, D model."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from components.layers import MaskedBatchNorm, length_mask


def _mask(lens: Tensor, num_frames: int, like: Tensor) -> Tensor:
    return length_mask(lens, num_frames)[:, None, :, None].to(like.dtype)


class ConvBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; the first halves frames and mels: n becomes (n + 1) // 2."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1, bias=False)
        self.norm1 = MaskedBatchNorm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = MaskedBatchNorm(out_channels)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride=2, bias=False)
        self.norm_shortcut = MaskedBatchNorm(out_channels)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """`[B, C, L, F]`, zero at padded frames, to `[B, C', (L + 1) // 2, (F + 1) // 2]`; `mask` for the latter."""
        y = torch.relu(self.norm1(self.conv1(x) * mask, mask))
        y = self.norm2(self.conv2(y) * mask, mask)
        return torch.relu(y + self.norm_shortcut(self.shortcut(x) * mask, mask))


class ConvNet(nn.Module):
    """Normalised features through residual blocks, then the mean over what is left of the mels.

    Args:
        num_features: F of the frontend.
        channels: of each block; every block halves frames and mels.
        dropout: on the output.
    """

    def __init__(self, num_features: int, channels: Sequence[int] = (32, 64, 128), dropout: float = 0.1) -> None:
        super().__init__()
        self.norm_in = MaskedBatchNorm(num_features)
        widths = [1, *channels]
        self.blocks = nn.ModuleList(ConvBlock(a, b) for a, b in pairwise(widths))
        self.dropout = nn.Dropout(dropout)
        self.embed_dim = widths[-1]
        self.gradient_checkpointing = False

    def gradient_checkpointing_enable(self) -> None:
        """Recompute each block in the backward pass instead of keeping what is inside it."""
        self.gradient_checkpointing = True

    def forward(self, features: Tensor, feature_lens: Tensor) -> tuple[Tensor, Tensor]:
        """`[B, L, F]`, `[B]` to hidden `[B, L', D]` and hidden_lens `[B]`, each `ceil(L / 2^blocks)`."""
        mask = _mask(feature_lens, features.shape[1], features)
        x = self.norm_in(features.transpose(1, 2).unsqueeze(3), mask)  # mels as channels: one statistic for each
        x, lens = x.permute(0, 3, 2, 1), feature_lens  # [B, 1, L, F]
        for block in self.blocks:
            lens = (lens + 1) // 2
            mask = _mask(lens, (x.shape[2] + 1) // 2, x)
            if self.gradient_checkpointing and self.training:
                x = checkpoint(block, x, mask, use_reentrant=False)
            else:
                x = block(x, mask)
        return self.dropout(x.mean(dim=3).transpose(1, 2)), lens

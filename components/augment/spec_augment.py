"""SpecAugment as a function of seeds (Park et al. 2019, arXiv:1904.08779).

Shapes: B batch, L frames, F mels, M masks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def _logical_shift(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def hash_uniform(seed: Tensor, num_draws: int) -> Tensor:
    """Uniform numbers in [0, 1) that depend on nothing but (seed, draw); int64 `[B]` to float32 `[B, num_draws]`.

    The finaliser of splitmix64 (Steele et al. 2014) over counters: no generator state, the same on every device.
    """
    counter = torch.arange(1, num_draws + 1, device=seed.device, dtype=torch.int64)
    x = seed.unsqueeze(1) + counter * -0x61C8864680B583EB  # wraps around, as intended
    x = (x ^ _logical_shift(x, 30)) * -0x40A7B892E31B1A47
    x = (x ^ _logical_shift(x, 27)) * -0x6B2FB644ECCEEE15
    x = x ^ _logical_shift(x, 31)
    return _logical_shift(x, 40).float() / (1 << 24)


class SpecAugment(nn.Module):
    """Replace bands of frames and of mels by the clip's mean; in training only.

    Args:
        num_time_masks, max_time_width: how many bands of frames, and of how many frames each at most.
        max_time_share: no band is wider than this share of the clip.
        num_mel_masks, max_mel_width: likewise over mels.
        p: probability that a clip is masked at all.
    """

    def __init__(
        self,
        num_time_masks: int = 2,
        max_time_width: int = 12,
        max_time_share: float = 0.2,
        num_mel_masks: int = 2,
        max_mel_width: int = 8,
        p: float = 1.0,
    ) -> None:
        super().__init__()
        self.num_time_masks, self.max_time_width, self.max_time_share = num_time_masks, max_time_width, max_time_share
        self.num_mel_masks, self.max_mel_width, self.p = num_mel_masks, max_mel_width, p

    def forward(self, features: Tensor, feature_lens: Tensor, seed: Tensor | None) -> Tensor:
        """Mask `[B, L, F]` below `feature_lens [B]` by `seed [B]`; without seeds nothing is masked."""
        if not self.training or seed is None:
            return features
        num_time, num_mel = self.num_time_masks, self.num_mel_masks
        draws = hash_uniform(seed, 1 + 2 * (num_time + num_mel))
        chosen = draws[:, 0] < self.p
        time_draws, mel_draws = draws[:, 1:].split([2 * num_time, 2 * num_mel], dim=1)
        widest = (feature_lens * self.max_time_share).floor().clamp(max=self.max_time_width)
        in_time = _bands(time_draws, feature_lens, widest, features.shape[1])
        mels = torch.full_like(feature_lens, features.shape[2])
        in_mel = _bands(mel_draws, mels, torch.full_like(widest, self.max_mel_width), features.shape[2])
        inside = torch.arange(features.shape[1], device=features.device) < feature_lens.unsqueeze(1)
        masked = (in_time.unsqueeze(2) | in_mel.unsqueeze(1)) & inside.unsqueeze(2) & chosen.view(-1, 1, 1)
        # Frames behind a clip's last are zero, so the sum is the clip's own.
        mean = features.sum((1, 2)) / (feature_lens * features.shape[2])
        return torch.where(masked, mean.view(-1, 1, 1), features)


def _bands(draws: Tensor, lens: Tensor, widest: Tensor, size: int) -> Tensor:
    """Union of M bands inside `lens [B]`, each from two draws (width, start); `[B, 2M]` to boolean `[B, size]`."""
    width_draw, start_draw = draws.chunk(2, dim=1)
    width = (width_draw * (widest.unsqueeze(1) + 1)).floor()
    start = (start_draw * (lens.unsqueeze(1) - width + 1).clamp(min=1)).floor()
    position = torch.arange(size, device=draws.device).view(1, 1, -1)
    inside = (position >= start.unsqueeze(2)) & (position < (start + width).unsqueeze(2))
    return inside.any(dim=1)

"""SpecAugment as a function of seeds (Park et al. 2019, arXiv:1904.08779).

Shapes: B batch, L frames, F mels, M masks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from components.augment.keyed import hash_uniform

# The point that is moved is moved by this share of the clip at most, however large W is.
_MAX_WARP_SHARE = 0.2


class SpecAugment(nn.Module):
    """Bend time, and replace bands of frames and of mels by the clip's mean; in training only.

    Args:
        num_time_masks, max_time_width: how many bands of frames, and of how many frames each at most.
        max_time_share: no band is wider than this share of the clip.
        num_mel_masks, max_mel_width: likewise over mels.
        p: probability that a clip is changed at all.
        max_time_warp: frames by which a point of the clip is moved at most, W in the paper; 0 bends nothing.
    """

    def __init__(
        self,
        num_time_masks: int = 2,
        max_time_width: int = 12,
        max_time_share: float = 0.2,
        num_mel_masks: int = 2,
        max_mel_width: int = 8,
        p: float = 1.0,
        max_time_warp: int = 0,
    ) -> None:
        super().__init__()
        self.num_time_masks, self.max_time_width, self.max_time_share = num_time_masks, max_time_width, max_time_share
        self.num_mel_masks, self.max_mel_width, self.p = num_mel_masks, max_mel_width, p
        self.max_time_warp = max_time_warp

    def forward(self, features: Tensor, feature_lens: Tensor, seed: Tensor | None) -> Tensor:
        """Change `[B, L, F]` below `feature_lens [B]` by `seed [B]`; without seeds nothing is changed."""
        if not self.training or seed is None:
            return features
        num_time, num_mel = self.num_time_masks, self.num_mel_masks
        draws = hash_uniform(seed, 1 + 2 * (num_time + num_mel) + 2)
        chosen = draws[:, 0] < self.p
        time_draws, mel_draws, warp_draws = draws[:, 1:].split([2 * num_time, 2 * num_mel, 2], dim=1)
        if self.max_time_warp:
            features = time_warp(features, feature_lens, self.max_time_warp, warp_draws, chosen)
        widest = (feature_lens * self.max_time_share).floor().clamp(max=self.max_time_width)
        in_time = _bands(time_draws, feature_lens, widest, features.shape[1])
        mels = torch.full_like(feature_lens, features.shape[2])
        in_mel = _bands(mel_draws, mels, torch.full_like(widest, self.max_mel_width), features.shape[2])
        inside = torch.arange(features.shape[1], device=features.device) < feature_lens.unsqueeze(1)
        masked = (in_time.unsqueeze(2) | in_mel.unsqueeze(1)) & inside.unsqueeze(2) & chosen.view(-1, 1, 1)
        # Frames behind a clip's last are zero, so the sum is the clip's own.
        mean = features.sum((1, 2)) / (feature_lens * features.shape[2])
        return torch.where(masked, mean.view(-1, 1, 1).to(features.dtype), features)


def _bands(draws: Tensor, lens: Tensor, widest: Tensor, size: int) -> Tensor:
    """Union of M bands inside `lens [B]`, each from two draws (width, start); `[B, 2M]` to boolean `[B, size]`."""
    width_draw, start_draw = draws.chunk(2, dim=1)
    width = (width_draw * (widest.unsqueeze(1) + 1)).floor()
    start = (start_draw * (lens.unsqueeze(1) - width + 1).clamp(min=1)).floor()
    position = torch.arange(size, device=draws.device).view(1, 1, -1)
    inside = (position >= start.unsqueeze(2)) & (position < (start + width).unsqueeze(2))
    return inside.any(dim=1)


def time_warp(features: Tensor, lens: Tensor, max_frames: int, draws: Tensor, chosen: Tensor) -> Tensor:
    """Move a point of each clip in time and stretch what is left and right of it; the ends stay where they are.

    The point lies at least W frames from both ends and moves by up to W either way, W = min(max_frames, a fifth of the
    clip); frames between two are interpolated linearly. Frames behind a clip's last are neither read nor written.

    Args:
        features: `[B, L, F]`.
        lens: `[B]`.
        draws: `[B, 2]` in [0, 1): where the point lies, and where it goes.
        chosen: boolean `[B]`, the clips to change.
    """
    last = (lens - 1).clamp(min=0).float().unsqueeze(1)
    reach = (last * _MAX_WARP_SHARE).clamp(max=max_frames)
    point = reach + draws[:, :1] * (last - 2 * reach)
    moved = point + (2 * draws[:, 1:] - 1) * reach
    position = torch.arange(features.shape[1], device=features.device).unsqueeze(0)
    left = position * point / moved.clamp(min=1e-6)
    right = point + (position - moved) * (last - point) / (last - moved).clamp(min=1e-6)
    source = torch.minimum(torch.where(position < moved, left, right).clamp(min=0), last)
    kept = ~chosen.unsqueeze(1) | (position > last) | (last < 2)
    source = torch.where(kept, position.float(), source)
    below = source.floor().long().clamp(max=features.shape[1] - 1)
    above = torch.minimum(below + 1, torch.maximum(last.long(), below))
    share = (source - below).unsqueeze(2).to(features.dtype)
    index = torch.stack((below, above)).unsqueeze(-1).expand(-1, -1, -1, features.shape[2])
    return torch.lerp(features.gather(1, index[0]), features.gather(1, index[1]), share)

"""FilterAugment as a function of seeds (Nam et al. 2022, arXiv:2110.03282).

Shapes: B batch, L frames, F mels, N bands.

The colour of a room, a microphone or a distance: bands of mels louder or fainter, the same over a whole clip.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from components.augment.draws import check_probability, check_range
from components.augment.keyed import hash_uniform, stream
from components.layers.masking import length_mask


class FilterAugment(nn.Module):
    """Add a gain in dB, drawn per band of mels, to log-mel features; in training only.

    Args:
        min_db, max_db: range of a gain.
        min_bands, max_bands: how many bands there are; as many as fit where there are too few mels.
        min_width: mels of a band at least.
        kind: `step`: one gain for a band; `linear`: gains at the edges of bands, and straight lines between.
        per_db: by how much a feature grows when the power grows by 1 dB: ln(10) / 10 for the natural logarithm of the
            power, 0.1 for the common one, 1 for dB.
        p: probability that a clip is changed.
    """

    def __init__(
        self,
        min_db: float = -6.0,
        max_db: float = 6.0,
        min_bands: int = 3,
        max_bands: int = 6,
        min_width: int = 6,
        kind: Literal["linear", "step"] = "linear",
        per_db: float = math.log(10) / 10,
        p: float = 1.0,
    ) -> None:
        super().__init__()
        self.min_db, self.max_db = check_range(min_db, max_db, "FilterAugment", "gain in dB")
        self.min_bands, self.max_bands = check_range(min_bands, max_bands, "FilterAugment", "number of bands")
        self.min_width, self.kind, self.per_db = min_width, kind, per_db
        self.p = check_probability(p, "FilterAugment")

    def forward(self, features: Tensor, feature_lens: Tensor, seed: Tensor | None) -> Tensor:
        """Colour `[B, L, F]` below `feature_lens [B]` by `seed [B]`; without seeds nothing is changed."""
        if not self.training or seed is None:
            return features
        num_cuts = self.max_bands - 1
        draws = hash_uniform(seed ^ stream("FilterAugment"), 2 + num_cuts + self.max_bands + 1)
        chosen, count, cuts, gains = draws.split([1, 1, num_cuts, self.max_bands + 1], dim=1)
        num_bands = self.min_bands + (count * (self.max_bands - self.min_bands + 1)).floor()
        num_bands = num_bands.clamp(max=max(1, features.shape[2] // self.min_width))
        edges = _edges(cuts, num_bands, features.shape[2], self.min_width)
        gains_db = self.min_db + gains * (self.max_db - self.min_db)
        curve = _curve(edges, gains_db, features.shape[2], self.kind) * self.per_db * (chosen < self.p)
        mask = length_mask(feature_lens, features.shape[1]).unsqueeze(2)
        return features + (curve.unsqueeze(1) * mask).to(features.dtype)


def _edges(cuts: Tensor, num_bands: Tensor, num_mels: int, min_width: int) -> Tensor:
    """Where bands begin and end: 0, cuts at least `min_width` apart, `num_mels`; draws `[B, N - 1]` to `[B, N + 1]`.

    A clip with fewer bands than N uses fewer of the draws; its remaining edges are `num_mels`.
    """
    number = torch.arange(1, cuts.shape[1] + 1, device=cuts.device)
    used = number < num_bands
    free = num_mels - num_bands * min_width
    ordered = torch.where(used, cuts, 1.0).sort(dim=1).values
    inner = torch.where(used, number * min_width + (ordered * (free + 1)).floor(), num_mels)
    zero = torch.zeros_like(num_bands)
    return torch.cat((zero, inner, torch.full_like(zero, num_mels)), dim=1)


def _curve(edges: Tensor, gains_db: Tensor, num_mels: int, kind: str) -> Tensor:
    """Gain in dB of each mel, `[B, F]`."""
    mel = torch.arange(num_mels, device=edges.device, dtype=edges.dtype).expand(len(edges), -1).contiguous()
    band = torch.searchsorted(edges[:, 1:].contiguous(), mel, right=True)
    low = gains_db.gather(1, band)
    if kind == "step":
        return low
    start, end = edges.gather(1, band), edges.gather(1, band + 1)
    return torch.lerp(low, gains_db.gather(1, band + 1), (mel - start) / (end - start))

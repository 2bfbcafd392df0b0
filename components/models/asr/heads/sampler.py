"""Words that a parallel decoder is told in training.  Shapes: B batch, N tokens, D hidden."""

from __future__ import annotations

import torch
from torch import Tensor

from components.layers.masking import length_mask


def revealed_places(wrong: Tensor, lens: Tensor, ratio: float, keys: Tensor | None = None) -> Tensor:
    """Which places of a sentence are told: bool `[B, N]`.

    As many as `ratio` of the places that the first pass has wrong, rounded down, anywhere in the sentence: the more it
    knows, the less it is told (glancing, Qian et al. 2021, arXiv:2008.07905; in Paraformer, arXiv:2206.08317, 3.3).

    Args:
        wrong: bool `[B, N]`, what the first pass has wrong; False behind `lens [B]`.
        ratio: lambda, from 0 to 1.
        keys: `[B, N]`; the places with the lowest are told. None draws them from the global generator.
    """
    keys = torch.rand(wrong.shape, device=wrong.device) if keys is None else keys
    keys = keys.masked_fill(~length_mask(lens, wrong.shape[1]), torch.inf)
    rank = keys.argsort(dim=1).argsort(dim=1)
    return rank < (wrong.sum(1) * ratio).long()[:, None]


def tell(acoustic: Tensor, words: Tensor, revealed: Tensor) -> Tensor:
    """`[B, N, D]`: word embeddings at the places that are `revealed [B, N]`, acoustic ones at the others."""
    return words.where(revealed[:, :, None], acoustic)

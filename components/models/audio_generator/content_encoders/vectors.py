"""One vector for a whole clip.  Shapes: B batch, F features, E width."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from components.models.audio_generator.conditions import Stream
from components.models.audio_generator.content_encoders.base import ContentEncoder
from utils.errors import UserError


class VectorEncoder(ContentEncoder):
    """A vector, of a speaker say, projected.

    Args:
        num_features: F.
        embed_dim: E.
    """

    def __init__(self, num_features: int, embed_dim: int = 128) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.projection = nn.Linear(num_features, embed_dim)

    def forward(self, entry: Tensor, lens: Tensor | None = None, **fields: Any) -> Stream:
        """`[B, F]` to `[B, E]`; of `lens`, that a collate function may give, nothing is made."""
        return Stream(self.projection(entry.to(self.projection.weight.dtype)), None)


class NumberEncoder(ContentEncoder):
    """A number, a duration in seconds say, as sines and cosines (Tancik et al. 2020, arXiv:2006.10739) and a network.

    Args:
        minimum, maximum: between which the number lies; beyond them it counts as these.
        embed_dim: E.
        num_frequencies: from half a period over that range, each twice the one before.

    Raises:
        UserError: the minimum is not below the maximum.
    """

    def __init__(self, minimum: float, maximum: float, embed_dim: int = 128, num_frequencies: int = 8) -> None:
        super().__init__()
        if not minimum < maximum:
            raise UserError(f"minimum must lie below maximum, got {minimum} and {maximum}")
        self.minimum, self.maximum, self.embed_dim = minimum, maximum, embed_dim
        frequencies = math.pi * 2.0 ** torch.arange(num_frequencies)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.network = nn.Sequential(
            nn.Linear(1 + 2 * num_frequencies, embed_dim), nn.SiLU(), nn.Linear(embed_dim, embed_dim)
        )

    def forward(self, entry: Tensor, lens: Tensor | None = None, **fields: Any) -> Stream:
        """Numbers `[B]` to `[B, E]`."""
        place = (entry.float().clamp(self.minimum, self.maximum) - self.minimum) / (self.maximum - self.minimum)
        angles = place.unsqueeze(-1) * self.frequencies
        features = torch.cat([2 * place.unsqueeze(-1) - 1, angles.sin(), angles.cos()], dim=-1)
        return Stream(self.network(features.to(self.network[0].weight.dtype)), None)


class ClassEncoder(ContentEncoder):
    """A class id, of a speaker say, as a learned vector; the unknown class, -100 or any negative one, has its own.

    Args:
        num_classes: ids run from 0 to one less.
        embed_dim: E.
    """

    def __init__(self, num_classes: int, embed_dim: int = 128) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.embedding = nn.Embedding(num_classes + 1, embed_dim)

    def forward(self, entry: Tensor, lens: Tensor | None = None, **fields: Any) -> Stream:
        """Ids int64 `[B]` to `[B, E]`."""
        return Stream(self.embedding((entry + 1).clamp(min=0)), None)

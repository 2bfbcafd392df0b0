"""At which times a network is trained: densities over t in (0, 1).

Draws are stratified: each of n items draws from an n-th of the density of its own, in random order, so that every batch
covers all times and the loss varies less. They come from the global generator of the device.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from utils.errors import UserError

_EDGE = 1e-5


class TimestepDensity(ABC):
    """A density given by its quantile function."""

    def sample(self, num_items: int, device: torch.device | str = "cpu") -> Tensor:
        """`t [num_items]` float32, strictly inside (0, 1)."""
        strata = torch.randperm(num_items, device=device)
        quantiles = (strata + torch.rand(num_items, device=device)) / num_items
        return self.at(quantiles.clamp(_EDGE, 1 - _EDGE)).clamp(_EDGE, 1 - _EDGE)

    @abstractmethod
    def at(self, quantiles: Tensor) -> Tensor:
        """The times below which lie these shares of the density."""


class UniformTimesteps(TimestepDensity):
    """Every time alike."""

    def at(self, quantiles: Tensor) -> Tensor:
        return quantiles


class LogitNormalTimesteps(TimestepDensity):
    """`t = sigmoid(mean + std n)`: most at the middle, where it is hardest (Esser et al. 2024, arXiv:2403.03206).

    Args:
        mean: above 0 draws more times near the data.
        std: wider than 1 comes nearer to uniform, then to the edges.
    """

    def __init__(self, mean: float = 0.0, std: float = 1.0) -> None:
        if std <= 0:
            raise UserError(f"LogitNormalTimesteps: std must be positive, got {std}")
        self.mean, self.std = mean, std

    def at(self, quantiles: Tensor) -> Tensor:
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(quantiles))


class ShiftedTimesteps(TimestepDensity):
    """Another density, moved towards the noise: `t' = t / (t + shift (1 - t))` (Esser et al. 2024, eq. 23, in our t).

    Args:
        shift: 1 changes nothing; long or high-dimensional latents want more, 3 say.
    """

    def __init__(self, density: TimestepDensity, shift: float = 1.0) -> None:
        self.density, self.shift = density, shift

    def at(self, quantiles: Tensor) -> Tensor:
        t = self.density.at(quantiles)
        return t / (t + self.shift * (1 - t))

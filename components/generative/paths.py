"""Paths from noise to data.  Shapes: B batch, L frames, D latent.

`t` runs from 0, the source `x_0` (noise), to 1, the data `x_1`. A path fixes `x_t` and what a network is to predict
there, the velocity d x_t / d t (Lipman et al. 2023, arXiv:2210.02747).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(slots=True)
class PathSample:
    """A point on the path and the direction there; both `[B, L, D]`."""

    x_t: Tensor
    velocity: Tensor


class AffinePath(ABC):
    """`x_t = a(t) x_1 + s(t) x_0`."""

    @abstractmethod
    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """`a(t)`, `s(t)`."""

    @abstractmethod
    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """`a'(t)`, `s'(t)`."""

    def sample(self, x_0: Tensor, x_1: Tensor, t: Tensor) -> PathSample:
        """The path's points between `x_0` and `x_1`, `[B, L, D]`, at `t [B]`."""
        a, s = _columns(self.coefficients(t), x_1)
        da, ds = _columns(self.derivatives(t), x_1)
        return PathSample(a * x_1 + s * x_0, da * x_1 + ds * x_0)

    def data(self, x_t: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
        """The `x_1` that a velocity at `x_t` points to."""
        a, s = _columns(self.coefficients(t), x_t)
        da, ds = _columns(self.derivatives(t), x_t)
        return (s * velocity - ds * x_t) / (s * da - ds * a)

    def source(self, x_t: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
        """The `x_0` that a velocity at `x_t` comes from."""
        a, s = _columns(self.coefficients(t), x_t)
        da, ds = _columns(self.derivatives(t), x_t)
        return (da * x_t - a * velocity) / (s * da - ds * a)


class LinearPath(AffinePath):
    """Straight lines: rectified flow (Liu et al. 2023, arXiv:2209.03003), and with `sigma_min` Lipman et al., eq. 22.

    Args:
        sigma_min: what is left of the source at t = 1.
    """

    def __init__(self, sigma_min: float = 0.0) -> None:
        self.sigma_min = sigma_min

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return t, 1 - (1 - self.sigma_min) * t

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), torch.full_like(t, self.sigma_min - 1)


class CosinePath(AffinePath):
    """Arcs of constant variance: `a = sin(pi t / 2)`, `s = cos(pi t / 2)`.

    Its velocity is pi/2 times the target of v-prediction (Salimans & Ho 2022, arXiv:2202.00512, with the sign of ours).
    """

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        angle = math.pi / 2 * t
        return torch.sin(angle), torch.cos(angle)

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        angle = math.pi / 2 * t
        return math.pi / 2 * torch.cos(angle), -math.pi / 2 * torch.sin(angle)


def _columns(values: tuple[Tensor, Tensor], like: Tensor) -> tuple[Tensor, Tensor]:
    """`[B]` to a shape that multiplies `[B, L, D]`."""
    first, second = (value.view(-1, *[1] * (like.ndim - 1)) for value in values)
    return first, second

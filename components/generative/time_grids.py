"""Where a sampler stops on its way from t = 0 to t = 1: `num_steps + 1` times, none of them twice."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

TimeGrid = Callable[[int], Tensor]


def uniform_grid(num_steps: int) -> Tensor:
    """Steps of one length; float64 `[num_steps + 1]`."""
    return torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)


class SwayGrid:
    """`t + c (cos(pi t / 2) - 1 + t)` (Chen et al. 2024, F5-TTS, arXiv:2410.06885, eq. 7).

    Args:
        coefficient: below 0 more steps near the noise, -1 at most; above 0 near the data.
    """

    def __init__(self, coefficient: float = -1.0) -> None:
        self.coefficient = coefficient

    def __call__(self, num_steps: int) -> Tensor:
        t = uniform_grid(num_steps)
        return t + self.coefficient * (torch.cos(math.pi / 2 * t) - 1 + t)


class ShiftedGrid:
    """`t / (t + shift (1 - t))`, above 1 more steps near the noise (Esser et al. 2024, arXiv:2403.03206, eq. 23)."""

    def __init__(self, shift: float = 3.0) -> None:
        self.shift = shift

    def __call__(self, num_steps: int) -> Tensor:
        t = uniform_grid(num_steps)
        return t / (t + self.shift * (1 - t))

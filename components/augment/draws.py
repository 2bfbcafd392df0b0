"""Random choices from torch's global generator, which whoever reads a dataset has seeded for the sample at hand."""

from __future__ import annotations

import torch

from utils.errors import UserError


def uniform(low: float, high: float) -> float:
    """A number from [low, high)."""
    return low + (high - low) * float(torch.rand(()))


def index_below(count: int) -> int:
    """A whole number from 0 to `count - 1`, all alike."""
    return int(torch.randint(count, ()))


def happens(p: float) -> bool:
    """True with probability `p`."""
    return float(torch.rand(())) < p


def check_probability(p: float, owner: str) -> float:
    """`p`, if it is one.

    Raises:
        UserError: it is not in [0, 1].
    """
    if not 0 <= p <= 1:
        raise UserError(f"{owner}: p is a probability, from 0 to 1, not {p}")
    return p


def check_range(low: float, high: float, owner: str, unit: str) -> tuple[float, float]:
    """`(low, high)`, if they are in this order.

    Raises:
        UserError: `low` is above `high`.
    """
    if low > high:
        raise UserError(f"{owner}: the smallest {unit}, {low}, is above the largest, {high}")
    return low, high

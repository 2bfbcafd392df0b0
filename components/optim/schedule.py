"""Schedules with a linear warm-up, in optimizer updates. The first of n of them has 1/(n+1) of the peak, not zero.

A schedule's saved state is its step alone, so a run that is resumed with another length follows the new one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def cosine_with_warmup(
    optimizer: Optimizer, num_warmup_steps: int, num_training_steps: int, min_ratio: float = 0.0
) -> LambdaLR:
    """Up to the peak in a line, down to `min_ratio` of it along half a cosine (Loshchilov & Hutter, 2017)."""
    return _schedule(optimizer, num_warmup_steps, partial(_cosine, num_training_steps - num_warmup_steps, min_ratio))


def linear_with_warmup(
    optimizer: Optimizer, num_warmup_steps: int, num_training_steps: int, min_ratio: float = 0.0
) -> LambdaLR:
    """Up to the peak and down to `min_ratio` of it, both in a line."""
    return _schedule(optimizer, num_warmup_steps, partial(_linear, num_training_steps - num_warmup_steps, min_ratio))


def constant_with_warmup(optimizer: Optimizer, num_warmup_steps: int) -> LambdaLR:
    """Up to the peak in a line, and there it stays."""
    return _schedule(optimizer, num_warmup_steps, _constant)


def _schedule(optimizer: Optimizer, num_warmup_steps: int, after: Callable[[int], float]) -> LambdaLR:
    # A partial, unlike a lambda, can be pickled; unlike an object it has no state for LambdaLR to save.
    return LambdaLR(optimizer, partial(_with_warmup, num_warmup_steps, after))


def _with_warmup(num_warmup_steps: int, after: Callable[[int], float], step: int) -> float:
    """The factor on the peak learning rate at update `step`."""
    if step < num_warmup_steps:
        return (step + 1) / (num_warmup_steps + 1)
    return after(step - num_warmup_steps)


def _cosine(length: int, min_ratio: float, step: int) -> float:
    return min_ratio + (1 - min_ratio) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, length))))


def _linear(length: int, min_ratio: float, step: int) -> float:
    return min_ratio + (1 - min_ratio) * (1 - min(1.0, step / max(1, length)))


def _constant(step: int) -> float:
    return 1.0

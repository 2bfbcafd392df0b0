"""How sure a number is."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """Two-sided, in the unit of the value."""

    low: float
    high: float


def bootstrap(
    values: np.ndarray,
    statistic: Callable[[np.ndarray], float] = np.mean,
    num_draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval | None:
    """Percentile interval of a statistic over items drawn with replacement (Efron 1979, Annals of Statistics 7).

    Args:
        values: `[N]` or `[N, ...]`, an item a row.
        statistic: of such an array, to one number.
        num_draws: resamples; the same `seed`, the same interval.
        level: the share of repetitions of the experiment that it is to hold the truth in.

    Returns:
        None for fewer than two items, of which nothing can be said.
    """
    values = np.asarray(values)
    if len(values) < 2:
        return None
    generator = np.random.default_rng(seed)
    draws = [statistic(values[generator.integers(len(values), size=len(values))]) for _ in range(num_draws)]
    return percentiles(np.array(draws, dtype=np.float64), level)


def percentiles(draws: np.ndarray, level: float = 0.95) -> Interval:
    """The middle `level` of draws `[N]`."""
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def centred_interval(value: float, draws: np.ndarray, level: float = 0.95) -> Interval:
    """The spread of bootstrap draws, laid around the value.

    A distance between sets grows when items repeat, so the draws lie above the value: their percentiles would often not
    hold the value itself. What is taken from them is their spread about their median. It is sampling noise at this
    number of items, and does not mend the bias of the distance.
    """
    low, high = percentiles(draws, level)
    middle = float(np.median(draws))
    return Interval(value + low - middle, value + high - middle)


def wilson_interval(num_hits: int, num_trials: int, level: float = 0.95) -> Interval | None:
    """Interval of a share, right for few trials and at 0 and 1 too (Wilson 1927, JASA 22).

    Returns:
        None without a trial.

    Raises:
        ValueError: more hits than trials, or fewer than none.
    """
    if not 0 <= num_hits <= num_trials:
        raise ValueError(f"{num_hits} hits in {num_trials} trials")
    if num_trials == 0:
        return None
    z = NormalDist().inv_cdf((1 + level) / 2)
    share, per_trial = num_hits / num_trials, z * z / num_trials
    centre = share + per_trial / 2
    half = z * math.sqrt(share * (1 - share) / num_trials + per_trial / (4 * num_trials))
    low, high = (centre - half) / (1 + per_trial), (centre + half) / (1 + per_trial)
    # exactly 0 and 1 where rounding would miss them
    return Interval(0.0 if num_hits == 0 else low, 1.0 if num_hits == num_trials else high)

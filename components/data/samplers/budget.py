"""How much a batch may hold, and which items go together.  Shapes: N items, G batches."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from math import ceil
from typing import Any

import numpy as np

from components.data.samplers.lengths import Length, lengths_of
from components.data.samplers.plan import split_to
from utils.errors import UserError
from utils.logging import is_main_process

logger = logging.getLogger(__name__)

# How many more batches than one draw needed every pass gets, so that hardly a draw needs more.
_SLACK = 0.005
# Copies of an item are kept out of each other's batches by stretches of a pass that are batched by themselves; but not
# ones of less than so many batches, which could not be of like length.
_BATCHES_PER_STRETCH = 4
_TOO_LONG = ("drop", "alone", "raise")


@dataclass(frozen=True)
class Budget:
    """The most a padded batch may hold, and how items of like length are brought together.

    A batch of `n` items, the longest of length `m`, costs `n * (m + m^2 / quadratic_length)`: padding counts.

    Attributes:
        max_seconds: budget of a batch where `length` is "duration".
        max_total: budget in the unit of another `length` (frames, tokens, characters).
        max_items: of a batch.
        length: what counts as an item's length: "duration", a field of its record, or a function of it.
        quadratic_length: at this length the quadratic term doubles an item's cost, for models with self-attention; 15
            to 40 s are usual (`quadratic_duration` of lhotse.dataset.sampling.base.TimeConstraint). None: no such term.
        jitter: items are sorted by `length * (1 + jitter * u)`, `u` uniform in [0, 1), so that neighbours differ from
            pass to pass, at the price of about jitter / 2 of padding. None, with `max_items` alone: not sorted.
        num_buckets: shuffle within so many ranges of length of equal total length, instead of the jitter.
        too_long: what becomes of an item that is over the budget by itself: "drop" (counted and told), a batch "alone",
            or "raise".

    Raises:
        UserError: there is no limit, two for the same, or one that is not positive.
    """

    max_seconds: float | None = None
    max_items: int | None = None
    max_total: float | None = None
    length: Length = "duration"
    quadratic_length: float | None = None
    jitter: float | None = 0.05
    num_buckets: int | None = None
    too_long: str = "drop"

    def __post_init__(self) -> None:
        if (self.max_seconds, self.max_items, self.max_total) == (None, None, None):
            raise UserError("a batch needs a limit: max_seconds, max_total or max_items")
        if self.max_seconds is not None and (self.max_total is not None or self.length != "duration"):
            raise UserError("max_seconds is for length='duration'; the limit of another length is max_total")
        for name in ("max_seconds", "max_items", "max_total", "quadratic_length", "num_buckets"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"{name} must be positive, not {value!r}")
        if self.jitter is None and self.limit != float("inf"):
            raise UserError(
                "jitter=null (not sorted by length) goes with max_items alone: a budget of length needs a sort"
            )
        if self.jitter is not None and self.jitter < 0:
            raise UserError(f"jitter must not be negative, got {self.jitter!r}")
        if self.too_long not in _TOO_LONG:
            raise UserError(f"too_long must be one of {', '.join(_TOO_LONG)}, not {self.too_long!r}")

    @property
    def limit(self) -> float:
        """What a batch may cost; infinite where only `max_items` counts."""
        limits = [limit for limit in (self.max_seconds, self.max_total) if limit is not None]
        return limits[0] if limits else float("inf")

    def lengths(self, dataset: Any) -> np.ndarray:
        """Of each item, float64 `[N]`; all 1 where batches do not go by length.

        Raises:
            UserError: see `lengths_of`.
        """
        return np.ones(len(dataset)) if self.jitter is None else lengths_of(dataset, self.length)

    def costs(self, lengths: np.ndarray) -> np.ndarray:
        """Of items of `lengths [N]`, each by itself."""
        return lengths if self.quadratic_length is None else lengths + lengths**2 / self.quadratic_length

    def fitting(self, lengths: np.ndarray, dropped: Counter[str]) -> np.ndarray:
        """Indices of the items that may be in a batch, int64; the others are counted in `dropped` and warned of.

        Raises:
            UserError: one is too long and `too_long` is "raise", or none is left.
        """
        if self.too_long == "alone":
            return np.arange(len(lengths))
        fits = self.costs(lengths) <= self.limit
        if too_long := int((~fits).sum()):
            told = (
                f"{too_long} of {len(lengths)} items are over a batch's budget of {self.limit:g} by themselves, the "
                f"longest (number {int(lengths.argmax())}) has {lengths.max():g}"
            )
            if self.too_long == "raise" or not fits.any():
                raise UserError(f"{told}; raise the budget, or filter them by max_duration")
            if is_main_process():
                logger.warning("%s: left out (too_long=alone would give each a batch of its own)", told)
            dropped[f"over the budget of {self.limit:g}"] += too_long
        return np.flatnonzero(fits)

    def pack(
        self, lengths: np.ndarray, rng: np.random.Generator | None, num_batches: int | None = None,
        num_stretches: int = 1,
    ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        """Put items into batches.

        Args:
            lengths: float64 `[N]`.
            rng: for jitter and buckets; None sorts exactly.
            num_batches: exactly so many come out. Where the drawn order needs more, the jitter is reduced; where even
                the sorted one does, as it can only for items other than those of the draw that set the number, the
                budget is stretched by as many per cent as it takes.
            num_stretches: items are cut into so many stretches as they come, and batched within each.

        Returns:
            order: int64 `[N]`, positions in `lengths`.
            bounds: int64 `[G, 2]`, in `order`; shorter items come first.
        """
        costs, excess = self.costs(lengths), 1.0
        stretches = np.arange(len(lengths)) * num_stretches // len(lengths)
        edges = [0, *np.cumsum(np.bincount(stretches)).tolist()]
        for strength in (1.0, 0.5, 0.25, 0.0):
            order = self._order(lengths, rng, strength, stretches)
            in_order = costs[order].tolist()
            bounds = self._cut(in_order, edges)
            if num_batches is None or len(bounds) <= num_batches:
                break
        while num_batches is not None and len(bounds) > num_batches:
            excess += 0.01
            bounds = self._cut(in_order, edges, excess)
        return order, bounds if num_batches is None else split_to(bounds, num_batches)

    def num_batches(self, lengths: np.ndarray, shuffle: bool = True, num_stretches: int = 1) -> int:
        """A number of batches that suffices for `pack`, whatever it draws: that of one draw, and a little more."""
        _, bounds = self.pack(lengths, np.random.default_rng(0) if shuffle else None, num_stretches=num_stretches)
        num_batches = len(bounds)
        if shuffle and self.limit != float("inf"):
            num_batches += int(np.ceil(num_batches * _SLACK))
        return min(num_batches, len(lengths))

    def num_stretches(self, lengths: np.ndarray, num_visits: float) -> int:
        """Of a pass of items of `lengths [N]`: one for each visit of an item, or fewer where these would be short."""
        if self.jitter is None:
            return 1
        num_batches = max(self.costs(lengths).sum() / self.limit, len(lengths) / (self.max_items or len(lengths)))
        return max(1, min(ceil(num_visits), int(num_batches) // _BATCHES_PER_STRETCH))

    def _order(
        self, lengths: np.ndarray, rng: np.random.Generator | None, strength: float, stretches: np.ndarray
    ) -> np.ndarray:
        if self.jitter is None:
            return np.arange(len(lengths))
        if rng is None:
            return np.argsort(_by_stretch(lengths, stretches), kind="stable")
        if self.num_buckets is not None and strength:
            keys = _buckets(lengths, self.num_buckets) + rng.random(len(lengths))
        elif self.jitter * strength:
            keys = np.maximum(lengths, 1e-9) * (1 + self.jitter * strength * rng.random(len(lengths)))
        else:  # items of equal length in random order
            shuffled = rng.permutation(len(lengths))
            keys = _by_stretch(lengths, stretches)[shuffled]
            return shuffled[np.argsort(keys, kind="stable")]
        return np.argsort(_by_stretch(keys, stretches))  # no two are equal, so any sort will do

    def _cut(self, costs: list[float], edges: list[int], excess: float = 1.0) -> np.ndarray:
        """Close a batch at an edge, and where one more item would take it over the budget."""
        budget = self.limit * excess * (1 + 1e-9)  # 3 * 20.0 fits into 60
        max_items = self.max_items or len(costs)
        starts = []
        for start, end in pairwise(edges):
            starts.append(start)
            first, largest = start, 0.0
            for i in range(start, end):
                if (cost := costs[i]) > largest:
                    largest = cost
                num_items = i - first
                if num_items and (num_items == max_items or (num_items + 1) * largest > budget):
                    starts.append(i)
                    first, largest = i, cost
        return np.stack([starts, [*starts[1:], len(costs)]], axis=1).astype(np.int64)


def require_budget(given: Any) -> Budget:
    """`given`, if it is a budget.

    Raises:
        UserError: it is something else, as the mapping that YAML makes of a budget without `_target_`.
    """
    if not isinstance(given, Budget):
        wanted = "{_target_: components.data.Budget, max_seconds: 60}"
        raise UserError(f"budget: expected a Budget such as {wanted}, not {given!r}")
    return given


def _by_stretch(keys: np.ndarray, stretches: np.ndarray) -> np.ndarray:
    """Sort keys that keep stretches apart."""
    return keys + stretches * (keys.max() + 1.0) if stretches[-1] else keys


def _buckets(lengths: np.ndarray, num_buckets: int) -> np.ndarray:
    """The range of length each item belongs to, int `[N]`; all have the same total length."""
    order = np.argsort(lengths, kind="stable")
    total = np.cumsum(lengths[order])
    buckets = np.empty(len(lengths), dtype=np.int64)
    buckets[order] = np.minimum(total * num_buckets / max(total[-1], 1e-12), num_buckets - 1).astype(np.int64)
    return buckets

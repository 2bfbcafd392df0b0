"""Rare classes as often as one likes."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

import numpy as np

from components.data.samplers.budget import Budget, require_budget
from components.data.samplers.dynamic import PlannedBatchSampler, drawn_rng
from components.data.samplers.lengths import labels_of
from components.data.samplers.plan import BatchPlan
from components.data.samplers.quotas import Corpus, Share, apportion, shares_of, spread
from utils.errors import UserError
from utils.logging import is_main_process

logger = logging.getLogger(__name__)


class ClassBalancedBatchSampler(PlannedBatchSampler):
    """Batches in which an item's weight is its class's frequency to the power of `-exponent`.

    Every class is an endless stream of permutations of its items, of which each pass takes the same number, so no item
    of a class comes again before all others have. With a budget of items alone each batch holds the classes in their
    shares, as nearly as its size allows; with one of length items of like length go together.

    Args:
        dataset: its items have `records`; see `labels_of`. An item of several classes counts as its rarest; one of none
            is left out, and counted in `dropped`.
        label: a target of the records' `labels`, or a field.
        budget: what a batch may hold; `{max_items: 32, jitter: null}` are plain batches of 32.
        exponent: 1 makes all classes equally frequent, 0.5 is the square root, 0 leaves them as they are.
        num_items: of a pass; as many as there are by default. Passes go on for ever: cut epochs of any length from them
            with `trainer.epoch_length`.
        drop_last: where batches do not divide by the ranks, the loader may leave the last round out.
        seed: of the classes' permutations.

    Raises:
        UserError: no item has the label; see also `Budget`.
    """

    def __init__(
        self,
        dataset: Any,
        label: str,
        budget: Budget,
        exponent: float = 1.0,
        num_items: int | None = None,
        drop_last: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.budget, self.drop_last = require_budget(budget), drop_last
        self.dropped: Counter[str] = Counter()
        labels, self._lengths = labels_of(dataset, label), budget.lengths(dataset)
        kept = budget.fitting(self._lengths, self.dropped)
        items = self._by_class(labels, kept, label)
        rates = {name: len(own) ** (1 - exponent) for name, own in items.items()}
        quotas = apportion(num_items or sum(map(len, items.values())), rates)
        self.classes = {name: Corpus(name, own, self._lengths[own], quotas[name], seed) for name, own in items.items()}
        lengths = self._lengths[self._taken(0, np.random.default_rng(0))[0]]
        visits = max(corpus.visits_per_pass for corpus in self.classes.values())
        self._num_stretches = budget.num_stretches(lengths, visits)
        self.num_batches = budget.num_batches(lengths, num_stretches=self._num_stretches)

    def shares(self, pass_number: int = 0) -> dict[str, Share]:
        """Class -> what it really makes of a pass, in samples and in the budget's unit of length."""
        return shares_of(list(self.classes.values()), pass_number)

    def batches(self, pass_number: int) -> BatchPlan:
        """The batches of a pass: which items is a function of its number, with whom and when is drawn."""
        rng = drawn_rng()
        items, visits = self._taken(pass_number, rng)
        order, bounds = self.budget.pack(self._lengths[items], rng, self.num_batches, self._num_stretches)
        return BatchPlan(items[order], rng.permutation(bounds), visits[order])

    def _by_class(self, labels: list[list[str]], kept: np.ndarray, label: str) -> dict[str, np.ndarray]:
        counts = Counter(name for index in kept.tolist() for name in labels[index])
        if not counts:
            raise UserError(f"no item has a label {label!r} to balance by")
        items: dict[str, list[int]] = {name: [] for name in sorted(counts)}
        for index in kept.tolist():
            if labels[index]:
                items[min(labels[index], key=lambda name: (counts[name], name))].append(index)
            else:
                self.dropped[f"no {label}"] += 1
        if self.dropped[f"no {label}"] and is_main_process():
            logger.warning("%d items have no %s and are left out", self.dropped[f"no {label}"], label)
        return {name: np.array(own) for name, own in items.items() if own}

    def _taken(self, pass_number: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Indices and visits of a pass, every class at even distances."""
        windows = {name: corpus.window(pass_number) for name, corpus in self.classes.items()}
        kinds = spread([corpus.quota for corpus in self.classes.values()], rng)
        items, visits = np.empty(len(kinds), np.int64), np.empty(len(kinds), np.int64)
        for kind, (name, (taken, seen)) in enumerate(windows.items()):
            items[kinds == kind], visits[kinds == kind] = self.classes[name].items[taken], seen
        return items, visits

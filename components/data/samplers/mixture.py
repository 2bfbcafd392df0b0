"""Several corpora in given shares, and several tasks batch by batch."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from components.data.samplers.budget import Budget, require_budget
from components.data.samplers.dynamic import PlannedBatchSampler, drawn_rng
from components.data.samplers.lengths import lengths_of
from components.data.samplers.plan import BatchPlan
from components.data.samplers.quotas import Corpus, Share, apportion, shares_of, spread
from utils.errors import UserError
from utils.logging import is_main_process
from utils.names import did_you_mean

logger = logging.getLogger(__name__)


class MixtureBatchSampler(PlannedBatchSampler):
    """Batches from several corpora, in shares whose unit has a name.

    Every corpus is an endless stream of permutations, of which each pass takes the same number of items; see `Corpus`.
    A small one with much weight comes round several times in a pass, a large one with little is continued in the next.

    Args:
        dataset: a `ConcatDataset` of named parts.
        budget: what a batch may hold.
        weights: part -> weight; 0 leaves it out. Without weights: its size in `unit`.
        unit: what the weights are shares of: "seconds" or "samples".
        alpha: weights are raised to this power and normalised: below 1 brings small corpora up (Conneau and Lample
            2019, arXiv:1901.07291, section 3.1, where it is 0.5).
        mode: "batch": a batch is of one task, or without `tasks` of one part; "sample": any batch may hold anything.
        tasks: task -> its parts, for mode "batch". Default: each part is a task.
        order: of the batches: "round_robin" has each task at even distances, by its number of batches; "shuffled".
        consecutive: so many batches of a task follow each other, so that as many ranks have the same task at a step.
        until: a pass ends when this has been met whole: "all" of them, the "shortest" or "longest" part in `unit`, or a
            part by its name.
        num_items: a pass has so many items instead. Passes go on for ever: cut epochs of any length from them with
            `trainer.epoch_length`.
        shuffle: the batches and who shares one; what a pass consists of is fixed by `seed` and its number.
        drop_last: where batches do not divide by the ranks, the loader may leave the last round out.
        seed: of the corpora's permutations.

    Attributes:
        dropped: number of items left out, by reason.

    Raises:
        UserError: a name is no part, parts belong to no task or to two, nothing has weight; see also `Budget`.
    """

    def __init__(
        self,
        dataset: Any,
        budget: Budget,
        weights: Mapping[str, float] | None = None,
        unit: Literal["seconds", "samples"] = "seconds",
        alpha: float = 1.0,
        mode: Literal["batch", "sample"] = "batch",
        tasks: Mapping[str, Sequence[str]] | None = None,
        order: Literal["round_robin", "shuffled"] = "round_robin",
        consecutive: int = 1,
        until: str = "all",
        num_items: int | None = None,
        shuffle: bool = True,
        drop_last: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        _check_choice("unit", unit, ("seconds", "samples"))
        _check_choice("mode", mode, ("batch", "sample"))
        _check_choice("order", order, ("round_robin", "shuffled"))
        if consecutive < 1:
            raise UserError(f"consecutive must be at least 1, not {consecutive!r}")
        self.budget, self.shuffle, self.drop_last = require_budget(budget), shuffle, drop_last
        self._order, self._consecutive = order, consecutive
        self.dropped: Counter[str] = Counter()
        self._lengths = budget.lengths(dataset)
        seconds = _seconds(dataset, self._lengths, unit)
        items = _named_items(dataset, budget.fitting(self._lengths, self.dropped))
        sizes = {name: float(seconds[own].sum() if unit == "seconds" else len(own)) for name, own in items.items()}
        rates = _rates(items, sizes, weights, alpha)
        quotas = _quotas(items, sizes, rates, until, num_items)
        self.corpora = {name: Corpus(name, items[name], seconds[items[name]], quotas[name], seed) for name in rates}
        self._tasks = self._grouped(mode, tasks)
        self._counts = {task: self._count(task) for task in self._tasks}
        self.num_batches = sum(num_batches for num_batches, _ in self._counts.values())
        for name, share in self.shares().items() if is_main_process() else ():
            logger.info(
                "mixture: %s makes %.1f %% of the %s, each item is met %.2f times a pass",
                name, 100 * (share.seconds if unit == "seconds" else share.samples), unit, share.visits,
            )  # fmt: skip

    def shares(self, pass_number: int = 0) -> dict[str, Share]:
        """Part -> what it really makes of a pass, in samples and in seconds."""
        return shares_of(list(self.corpora.values()), pass_number)

    def batches(self, pass_number: int) -> BatchPlan:
        """The batches of a pass: which items is a function of its number, with whom and when is drawn."""
        rng = drawn_rng() if self.shuffle else None
        packed = [self._pack(task, pass_number, rng) for task in self._tasks]
        offsets = np.cumsum([0, *(len(order) for order, _, _ in packed)])
        bounds = [bounds + offset for (_, bounds, _), offset in zip(packed, offsets)]
        return BatchPlan(
            np.concatenate([order for order, _, _ in packed]),
            self._arranged(bounds, rng),
            np.concatenate([visits for _, _, visits in packed]),
        )

    def _grouped(self, mode: str, tasks: Mapping[str, Sequence[str]] | None) -> dict[str, list[Corpus]]:
        if mode == "sample":
            if tasks is not None:
                raise UserError("tasks: with mode=sample a batch is of no one task; leave out one of the two")
            return {"": list(self.corpora.values())}
        if tasks is None:
            return {name: [corpus] for name, corpus in self.corpora.items()}
        assigned = Counter(part for parts in tasks.values() for part in parts)
        for part, times in assigned.items():
            if part not in self.corpora:
                raise UserError(f"tasks: {part!r} is no part with weight{did_you_mean(part, list(self.corpora))}")
            if times > 1:
                raise UserError(f"tasks: {part!r} is named {times} times")
        if missing := [part for part in self.corpora if part not in assigned]:
            raise UserError(f"tasks: {', '.join(missing)} belong to no task")
        return {task: [self.corpora[part] for part in parts] for task, parts in tasks.items() if parts}

    def _taken(self, task: str, pass_number: int) -> tuple[np.ndarray, np.ndarray]:
        """Of a pass: indices of the dataset and visits, in even mixture of the corpora."""
        corpora = self._tasks[task]
        windows = [corpus.window(pass_number) for corpus in corpora]
        items = np.concatenate([corpus.items[taken] for corpus, (taken, _) in zip(corpora, windows)])
        visits = np.concatenate([visits for _, visits in windows])
        if len(corpora) > 1:
            place = np.concatenate([(np.arange(corpus.quota) + 0.5) / corpus.quota for corpus in corpora])
            mixed = np.argsort(place, kind="stable")
            items, visits = items[mixed], visits[mixed]
        return items, visits

    def _count(self, task: str) -> tuple[int, int]:
        """The batches of every pass, and the stretches they are in."""
        lengths = self._lengths[self._taken(task, 0)[0]]
        num_visits = max(corpus.visits_per_pass for corpus in self._tasks[task])
        num_stretches = self.budget.num_stretches(lengths, num_visits)
        num_batches = self.budget.num_batches(lengths, self.shuffle, num_stretches)
        rounded = -(-num_batches // self._consecutive) * self._consecutive
        if rounded > len(lengths):
            raise UserError(
                f"{task or 'the mixture'} has {len(lengths)} items a pass, too few for {rounded} batches "
                f"(consecutive={self._consecutive}); raise num_items or its weight"
            )
        return rounded, num_stretches

    def _pack(
        self, task: str, pass_number: int, rng: np.random.Generator | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        items, visits = self._taken(task, pass_number)
        order, bounds = self.budget.pack(self._lengths[items], rng, *self._counts[task])
        return items[order], bounds, visits[order]

    def _arranged(self, bounds: list[np.ndarray], rng: np.random.Generator | None) -> np.ndarray:
        """The batches of all tasks in the order of the pass, int64 `[G, 2]`."""
        together = self._consecutive
        blocks = [(b if rng is None else rng.permutation(b)).reshape(-1, together, 2) for b in bounds]
        counts = [len(block) for block in blocks]
        even = spread(counts, np.random.default_rng(0) if rng is None else rng)
        if self._order == "shuffled" and rng is not None:
            even = rng.permutation(even)
        arranged = np.empty((len(even), together, 2), dtype=np.int64)
        for kind, block in enumerate(blocks):
            arranged[even == kind] = block
        return arranged.reshape(-1, 2)


def _check_choice(name: str, given: str, choices: tuple[str, ...]) -> None:
    if given not in choices:
        raise UserError(f"{name} must be {' or '.join(choices)}, not {given!r}")


def _named_items(dataset: Any, kept: np.ndarray) -> dict[str, np.ndarray]:
    """Part -> those of its indices that are `kept`; parts of which nothing is left are not there."""
    named = getattr(dataset, "named", None)
    if named is None:
        raise UserError(
            f"a mixture needs a components.data.ConcatDataset of named parts, not a {type(dataset).__name__}"
        )
    items, start = {}, 0
    for name, part in named.items():
        first, last = np.searchsorted(kept, [start, start + len(part)])
        if last > first:
            items[name] = kept[first:last]
        start += len(part)
    return items


def _seconds(dataset: Any, lengths: np.ndarray, unit: str) -> np.ndarray:
    """Of each item; where the unit is samples and nobody tells seconds, the budget's lengths stand in."""
    try:
        return lengths_of(dataset)
    except UserError:
        if unit == "seconds":
            raise
        return lengths


def _rates(
    items: Mapping[str, np.ndarray],
    sizes: Mapping[str, float],
    weights: Mapping[str, float | None] | None,
    alpha: float,
) -> dict[str, float]:
    """Part -> relative number of items that gives it its weight in the unit of `sizes`."""
    given = sizes if weights is None else {name: weight for name, weight in weights.items() if weight is not None}
    for name, weight in given.items():
        if name not in items:
            raise UserError(f"weights: there is no part {name!r}{did_you_mean(name, list(items))}")
        if not weight >= 0:
            raise UserError(f"weights.{name}: must not be negative, got {weight!r}")
    if missing := [name for name in items if name not in given]:
        raise UserError(f"weights: no weight for {', '.join(missing)} (0 leaves a part out)")
    wanted = {name: float(weight) ** alpha for name, weight in given.items() if weight > 0}
    if not wanted:
        raise UserError("weights: every part has weight 0")
    return {name: weight * len(items[name]) / sizes[name] for name, weight in wanted.items()}


def _quotas(
    items: Mapping[str, np.ndarray], sizes: Mapping[str, float], rates: Mapping[str, float], until: str,
    num_items: int | None,
) -> dict[str, int]:  # fmt: skip
    """Part -> items of a pass."""
    if num_items is not None:
        return apportion(num_items, rates)
    by_size = sorted(rates, key=lambda name: sizes[name])
    deciding = {"all": by_size, "shortest": by_size[:1], "longest": by_size[-1:]}.get(until, [until])
    if not set(deciding) <= set(rates):
        raise UserError(f"until must be all, shortest, longest or a part with weight, not {until!r}")
    scale = max(len(items[name]) / rates[name] for name in deciding)
    return {name: max(1, round(scale * rate)) for name, rate in rates.items()}

"""Batches of about equal cost from items of any length."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler

from components.data.samplers.budget import Budget
from components.data.samplers.lengths import Length, lengths_of
from components.data.samplers.plan import BatchPlan


class PlannedBatchSampler(Sampler[list[int]]):
    """What the batch samplers share: whole passes by number.

    The Trainer asks for `batches(pass_number)`, with torch's global generator seeded for it. Elsewhere it is a batch
    sampler like any other, whose walks go through the passes one after the other, or to the one `set_epoch` names.
    """

    num_batches: int
    drop_last = False

    def __init__(self) -> None:
        self.epoch = 0

    @abstractmethod
    def batches(self, pass_number: int) -> BatchPlan:
        """The batches of a pass; every pass has `len(self)`."""

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        yield from self.batches(self.epoch)
        self.epoch += 1

    def __len__(self) -> int:
        return self.num_batches


def drawn_rng() -> np.random.Generator:
    """A generator seeded from torch's global one."""
    return np.random.default_rng(int(torch.randint(2**62, ())))


class DynamicBatchSampler(PlannedBatchSampler):
    """Batches of items of like length, as many as fit into a budget of padded length.

    Items are sorted by a noisy length, cut where the budget is full, and the batches shuffled. Every pass has the same
    number of batches (the largest are halved to get there), so that schedules know their end; nothing is left out and
    nothing comes twice. Without `shuffle` items are sorted exactly and batches come from short to long: for validation.

    Args:
        dataset: see `lengths_of`.
        max_seconds, max_items, max_total, length, quadratic_length, jitter, num_buckets, too_long: see `Budget`.
        shuffle: another order every pass; drawn from torch's global generator.
        drop_last: where batches do not divide by the ranks, the loader may leave the last round out.

    Attributes:
        dropped: number of items left out, by reason.

    Raises:
        UserError: see `Budget` and `lengths_of`.
    """

    def __init__(
        self,
        dataset: Any,
        max_seconds: float | None = None,
        max_items: int | None = None,
        max_total: float | None = None,
        length: Length = "duration",
        quadratic_length: float | None = None,
        jitter: float = 0.05,
        num_buckets: int | None = None,
        shuffle: bool = True,
        drop_last: bool = False,
        too_long: str = "drop",
    ) -> None:
        super().__init__()
        self.budget = Budget(
            max_seconds=max_seconds, max_items=max_items, max_total=max_total, length=length,
            quadratic_length=quadratic_length, jitter=jitter, num_buckets=num_buckets, too_long=too_long,
        )  # fmt: skip
        self.shuffle, self.drop_last = shuffle, drop_last
        self.dropped: Counter[str] = Counter()
        lengths = lengths_of(dataset, length)
        self._items = self.budget.fitting(lengths, self.dropped)
        self._lengths = lengths[self._items]
        self.num_batches = self.budget.num_batches(self._lengths, shuffle=shuffle)

    def batches(self, pass_number: int) -> BatchPlan:
        """The batches of a pass; the number plays no part, the global generator decides."""
        rng = drawn_rng() if self.shuffle else None
        order, bounds = self.budget.pack(self._lengths, rng, self.num_batches)
        return BatchPlan(self._items[order], bounds if rng is None else rng.permutation(bounds))

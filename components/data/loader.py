"""A torch DataLoader from YAML, with samplers that must see the dataset."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch.utils.data import DataLoader, Dataset

from components.data.collate import PadCollate
from utils.errors import UserError


def make_dataloader(
    dataset: Dataset,
    batch_sampler: Any = None,
    sampler: Any = None,
    batch_size: int | None = 1,
    shuffle: bool = False,
    drop_last: bool = False,
    num_workers: int = 0,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    prefetch_factor: int | None = None,
    persistent_workers: bool = False,
    pin_memory: bool = False,
    timeout: float = 0,
    worker_init_fn: Callable[[int], None] | None = None,
    multiprocessing_context: str | None = None,
    in_order: bool = True,
) -> DataLoader:
    """A `torch.utils.data.DataLoader` whose samplers YAML can name, as partials that are called with the dataset.

        train_dataloader:
          _target_: components.data.make_dataloader
          dataset: ...
          batch_sampler: {_target_: components.data.DynamicBatchSampler, _partial_: true, max_seconds: 60}

    Args:
        dataset: map-style.
        batch_sampler: a partial of a batch sampler, or one that is made.
        sampler: likewise, of single items, or with `batch_size: null` of what the dataset makes a batch of: a sampler
            and a dataset of Lhotse's.
        collate_fn: `PadCollate()` by default; items go through as they are where `batch_size` is null.

    The others are torch's own.

    Raises:
        UserError: settings contradict each other; a sampler deals out batches to ranks, which the Trainer does.
    """
    made = {
        name: given(dataset) if isinstance(given, functools.partial) else given
        for name, given in (("batch_sampler", batch_sampler), ("sampler", sampler))
        if given is not None
    }
    for name, one in made.items():
        _refuse_sharding(name, one)
    if batch_sampler is not None and (shuffle or drop_last or sampler is not None or batch_size != 1):
        raise UserError(
            "with a batch_sampler, the dataloader has no batch_size, shuffle, drop_last or sampler of its own"
        )
    if sampler is not None and shuffle:
        raise UserError("with a sampler, the dataloader's shuffle has no meaning: the sampler has the order")
    if prefetch_factor is not None and not num_workers:
        raise UserError("prefetch_factor is for workers: set num_workers, or leave it out")
    if batch_sampler is None:
        made |= {"batch_size": batch_size, "shuffle": shuffle or None, "drop_last": drop_last}
    loads_batches = batch_sampler is None and batch_size is None
    return DataLoader(
        dataset, **made, num_workers=num_workers, collate_fn=collate_fn or (None if loads_batches else PadCollate()),
        prefetch_factor=prefetch_factor, persistent_workers=persistent_workers and num_workers > 0,
        pin_memory=pin_memory, timeout=timeout, worker_init_fn=worker_init_fn,
        multiprocessing_context=multiprocessing_context if num_workers else None, in_order=in_order,
    )  # fmt: skip


def _refuse_sharding(name: str, sampler: Any) -> None:
    """Lhotse's samplers and torch's DistributedSampler take a rank's share; of that the Trainer would take one more."""
    for attribute, mend in (("world_size", "world_size: 1, rank: 0"), ("num_replicas", "num_replicas: 1, rank: 0")):
        ranks = getattr(sampler, attribute, 1)
        if ranks != 1:
            raise UserError(
                f"{name}: {type(sampler).__name__} deals out its batches to {ranks} ranks, and the Trainer would deal "
                f"out that share once more; give it {mend}"
            )

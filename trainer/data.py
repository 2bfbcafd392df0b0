"""Batches in an order that is a pure function of (seed, pass), sharded by rank, with a cursor that is set in O(1).

A *pass* is one walk over a dataset. Its *plan* is the global list of batches, the same on every rank; batch `g` belongs
to rank `g % world_size`. What a sample draws at random is keyed by (seed, pass, index), so neither workers, ranks nor a
resume change it. The cursor counts batches handed to the loop, never batches a worker has read ahead.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from numbers import Integral
from typing import Any

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
)

from trainer.interruption import spare_worker
from trainer.random_state import cpu_state, isolated_rng, mix, seed_cpu, set_cpu_state
from utils.errors import UserError

Batch = Any
Indices = list[Any]

# DataLoader settings that say how to load, not what or in which order.
_LOADING = ("num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn", "multiprocessing_context",
            "prefetch_factor", "persistent_workers", "pin_memory_device", "in_order")  # fmt: skip


class KeyedDataset(Dataset):
    """A dataset whose item is a function of its key `(index, seed)`: the generators are seeded before it is read.

    A dataset with a true `deterministic` attribute draws nothing and is spared the seeding.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self._keyed = not getattr(dataset, "deterministic", False)

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, key: tuple[Any, int]) -> Any:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: list[tuple[Any, int]]) -> list[Any]:
        if not self._keyed:
            return [self.dataset[index] for index, _ in keys]
        # A worker's generators serve nothing else; the main process has a training going on.
        before = cpu_state() if torch.utils.data.get_worker_info() is None else None
        try:
            return [self._read(index, seed) for index, seed in keys]
        finally:
            if before is not None:
                set_cpu_state(before)

    def _read(self, index: Any, seed: int) -> Any:
        seed_cpu(seed)
        return self.dataset[index]


class Plan(Sequence[Indices]):
    """The batches of one pass: batch `g` is cut from `order` when asked for."""

    def __init__(self, order: Sequence[Any] | torch.Tensor, batch_size: int, drop_last: bool) -> None:
        self._order, self._batch_size = order, batch_size
        self._length = len(order) // batch_size if drop_last else -(-len(order) // batch_size)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, g: int) -> Indices:  # type: ignore[override]
        piece = self._order[g * self._batch_size : (g + 1) * self._batch_size]
        return piece.tolist() if isinstance(piece, torch.Tensor) else list(piece)


def make_planner(loader: DataLoader, seed: int) -> tuple[Callable[[int], Sequence[Indices]], bool]:
    """From a loader's own settings, a function pass -> plan, and whether incomplete batches are dropped.

    Sequential and shuffled loaders are planned directly; any other sampler is asked, with the generators seeded by
    (seed, pass), and a batch sampler may offer `batches(pass) -> sequence` or `set_epoch(pass)`.
    """
    batch_sampler, sampler = loader.batch_sampler, loader.sampler
    if batch_sampler is not None and type(batch_sampler) is not BatchSampler:
        drop_last = bool(getattr(batch_sampler, "drop_last", False))
        return lambda number: _ask_batch_sampler(batch_sampler, seed, number), drop_last
    batch_size, drop_last = loader.batch_size or 1, bool(loader.drop_last)
    num_items = len(loader.dataset)  # type: ignore[arg-type]

    def plan(number: int) -> Plan:
        if type(sampler) is SequentialSampler:
            return Plan(range(num_items), batch_size, drop_last)
        if type(sampler) is RandomSampler and not sampler.replacement and sampler.num_samples == num_items:
            order = torch.randperm(num_items, generator=torch.Generator().manual_seed(mix(seed, number) >> 1))
            return Plan(order, batch_size, drop_last)
        return Plan(_ask_sampler(sampler, seed, number), batch_size, drop_last)

    return plan, drop_last


def _ask_sampler(sampler: Any, seed: int, number: int) -> list[Any]:
    with isolated_rng(seed, number):
        if getattr(sampler, "generator", None) is not None:
            sampler.generator.manual_seed(mix(seed, number) >> 1)
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(number)
        return list(sampler)


def _ask_batch_sampler(sampler: Any, seed: int, number: int) -> Sequence[Indices]:
    if hasattr(sampler, "batches"):
        with isolated_rng(seed, number):
            return sampler.batches(number)
    return _ask_sampler(sampler, seed, number)


class _WorkerStart:
    """A loader's own `worker_init_fn`, behind ours; a class, as it must be pickled for workers that are spawned."""

    def __init__(self, own: Callable[[int], None] | None) -> None:
        self._own = own.own if isinstance(own, _WorkerStart) else own

    @property
    def own(self) -> Callable[[int], None] | None:
        return self._own

    def __call__(self, worker_id: int) -> None:
        spare_worker()
        if self._own is not None:
            self._own(worker_id)


class _RankBatches(Sampler):
    """The keys of this rank's batches of a pass, from the cursor on."""

    def __init__(self, owner: PlannedLoader) -> None:
        self._owner = owner

    def __iter__(self) -> Iterator[Any]:
        return self._owner._keys()

    def __len__(self) -> int:
        return len(self._owner)


class PlannedLoader:
    """A map-style DataLoader, planned: same order on any machine, an equal number of batches on every rank.

    Where the batches do not divide by the ranks, the samples of the last round are dealt out evenly; with `drop_last`
    that round is dropped. If it has fewer samples than ranks, the others repeat one that must not count (`is_padding`).
    """

    def __init__(self, loader: DataLoader, *, seed: int, rank: int = 0, world_size: int = 1, limit: int | None = None):
        self._planner, self._drop_last = make_planner(loader, seed)
        self._seed, self._rank, self._world_size, self._limit = seed, rank, world_size, limit
        self._unbatched = loader.batch_size is None and loader.batch_sampler is None
        self._number, self._cursor = 0, 0
        self._plan: Sequence[Indices] = self._planner(0)
        self._inner_sampler = loader.batch_sampler or loader.sampler
        order = {"batch_size": None, "sampler": _RankBatches(self)} if self._unbatched else \
                {"batch_sampler": _RankBatches(self)}  # fmt: skip
        loading = {name: getattr(loader, name) for name in _LOADING if hasattr(loader, name)}
        loading["worker_init_fn"] = _WorkerStart(loader.worker_init_fn)
        # A generator of its own: opening an iterator must not draw from the training's generators.
        self._loader: DataLoader = DataLoader(
            KeyedDataset(loader.dataset), generator=torch.Generator().manual_seed(mix(seed) >> 1), **order, **loading
        )
        if len(self) == 0:
            raise UserError(f"a dataloader yields no batches: its dataset has {len(loader.dataset)} items")  # type: ignore[arg-type]

    def __len__(self) -> int:
        rounds, rest = divmod(len(self._plan), self._world_size)
        rounds += bool(rest) and not self._drop_last
        return rounds if self._limit is None else min(rounds, self._limit)

    def start(self, number: int, cursor: int = 0) -> None:
        """Go to pass `number`, behind its first `cursor` batches of this rank."""
        if number != self._number:
            self._number, self._plan = number, self._planner(number)
        self._cursor = cursor
        if hasattr(self._loader.dataset.dataset, "set_epoch"):  # type: ignore[attr-defined]
            self._loader.dataset.dataset.set_epoch(number)  # type: ignore[attr-defined]

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._loader)

    def read(self, number: int, position: int) -> Batch:
        """One batch of any pass, in this process and beside the walk."""
        before = self._number, self._plan
        if number != self._number:
            self._number, self._plan = number, self._planner(number)
        try:
            keys = self._keys_at(position)
        finally:
            self._number, self._plan = before
        dataset, collate = self._loader.dataset, self._loader.collate_fn
        return collate(dataset[keys[0]] if self._unbatched else dataset.__getitems__(keys))  # type: ignore[attr-defined]

    def is_padding(self, position: int) -> bool:
        """Whether this rank's batch at `position` only keeps it in step with the others."""
        first = position * self._world_size
        rest = len(self._plan) - first
        return rest < self._world_size and sum(map(len, self._tail(first))) <= self._rank

    def _tail(self, first: int) -> list[Indices]:
        return [self._plan[g] for g in range(first, len(self._plan))]

    def _indices(self, position: int) -> Indices:
        first = position * self._world_size
        if len(self._plan) - first >= self._world_size:
            return self._plan[first + self._rank]
        samples = [index for batch in self._tail(first) for index in batch]
        return samples[self._rank :: self._world_size] or samples[:1]

    def _keys(self) -> Iterator[Any]:
        for position in range(self._cursor, len(self)):
            keys = self._keys_at(position)
            yield keys[0] if self._unbatched else keys

    def _keys_at(self, position: int) -> list[tuple[Any, int]]:
        keys = []
        for place, index in enumerate(self._indices(position)):
            # A sampler may hand out whole cuts instead of numbers: those go by their place in the plan.
            number = int(index) if isinstance(index, Integral) else mix(position * self._world_size + self._rank, place)
            keys.append((index, mix(self._seed, self._number, number)))
        return keys


class StreamLoader:
    """Any other iterable of batches: an IterableDataset's loader, a list, an endless generator.

    The order is the source's own. Every rank reads it all and keeps its share of each complete round; a source that
    shards itself says so by `shards_itself = True`. A cursor is reached by reading up to it.
    """

    def __init__(self, source: Iterable, *, seed: int, rank: int = 0, world_size: int = 1, limit: int | None = None):
        self._source, self._seed, self._limit = source, seed, limit
        owner = getattr(source, "dataset", source)
        alone = bool(getattr(owner, "shards_itself", False))
        self._rank, self._world_size = (0, 1) if alone else (rank, world_size)
        self._number, self._cursor = 0, 0
        self._num_batches = _len_or_none(source)

    @property
    def known_length(self) -> int | None:
        """Batches of a pass per rank; None where the source does not say."""
        lengths = [
            n for n in (self._limit, self._num_batches and self._num_batches // self._world_size) if n is not None
        ]
        return min(lengths) if self._num_batches is not None else None

    def start(self, number: int, cursor: int = 0) -> None:
        """Go to pass `number`, behind its first `cursor` batches of this rank."""
        self._number, self._cursor = number, cursor
        for part in (
            self._source,
            getattr(self._source, "dataset", None),
            getattr(self._source, "batch_sampler", None),
        ):
            if hasattr(part, "set_epoch"):
                part.set_epoch(number)  # type: ignore[union-attr]

    def __iter__(self) -> Iterator[Batch]:
        if isinstance(self._source, DataLoader):
            self._source.worker_init_fn = _WorkerStart(self._source.worker_init_fn)
            self._source.generator = torch.Generator().manual_seed(mix(self._seed, self._number) >> 1)
        return islice(self._rounds(), self._cursor, self._limit)

    def _rounds(self) -> Iterator[Batch]:
        source = iter(self._source)
        while len(together := list(islice(source, self._world_size))) == self._world_size:
            yield together[self._rank]

    def is_padding(self, position: int) -> bool:
        return False


def _len_or_none(source: Any) -> int | None:
    try:
        return len(source)
    except TypeError:
        return None


def plan_loader(loader: Any, **where: Any) -> PlannedLoader | StreamLoader:
    """Wrap what the user gave: `where` is seed, rank, world_size and limit."""
    if isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset):
        return PlannedLoader(loader, **where)
    return StreamLoader(loader, **where)


class BatchStream:
    """Epochs cut from the passes of a loader; knows its place to the batch.

    An epoch is one pass, or `epoch_length` batches of an endless walk over passes.
    """

    def __init__(
        self,
        loader: PlannedLoader | StreamLoader,
        to_device: Callable[[Batch], Batch],
        epoch_length: int | None = None,
        repeat_first_pass: bool = False,
    ) -> None:
        self._loader, self._to_device, self._repeat = loader, to_device, repeat_first_pass
        self._endless = epoch_length is not None
        self.epoch_length = epoch_length or _pass_length(loader)
        self.number, self.cursor = 0, 0
        self.is_padding = False
        self.wait_seconds = 0.0
        self.iterator: Iterator[Batch] | None = None

    def epoch(self, num_taken: int) -> Iterator[tuple[Batch, bool]]:
        """Yield (batch, is the epoch's last) for what is left of an epoch of which `num_taken` batches are gone."""
        if self.epoch_length is None:
            yield from self._until_exhausted(num_taken)
            return
        for taken in range(num_taken + 1, self.epoch_length + 1):
            yield self._take(self._next()), taken == self.epoch_length
        if not self._endless:
            self._close()

    def _until_exhausted(self, num_taken: int) -> Iterator[tuple[Batch, bool]]:
        # One batch of look-ahead: only the end of the source tells that an epoch is over.
        batch = self._next(None)
        if batch is None and num_taken == 0:
            raise UserError("train_dataloader yields no batches")
        while batch is not None:
            following = self._next(None)
            yield self._take(batch), following is None
            batch = following
        self._close()

    def _next(self, *default: Any) -> Batch:
        started = time.perf_counter()
        if self.iterator is None:
            self._loader.start(0 if self._repeat else self.number, self.cursor)
            self.iterator = iter(self._loader)
        batch = next(self.iterator, None)
        if batch is None and not default:  # a pass came to its end inside an epoch
            if self.cursor == 0:
                raise UserError("train_dataloader yields no batches")
            self._close()
            return self._next()
        self.wait_seconds += time.perf_counter() - started
        return batch

    def _take(self, batch: Batch) -> Batch:
        self.is_padding = self._loader.is_padding(self.cursor)
        self.cursor += 1
        return self._to_device(batch)

    def _close(self) -> None:
        self.iterator = None
        self.number, self.cursor = self.number + 1, 0

    def read_again(self, number: int, cursor: int) -> Batch | None:
        """A batch by its place, beside the walk; None where the source can be read only once."""
        if not isinstance(self._loader, PlannedLoader):
            return None
        return self._to_device(self._loader.read(0 if self._repeat else number, cursor))

    def state_dict(self) -> dict[str, int]:
        return {"number": self.number, "cursor": self.cursor}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.number, self.cursor, self.iterator = state["number"], state["cursor"], None


def _pass_length(loader: PlannedLoader | StreamLoader) -> int | None:
    return len(loader) if isinstance(loader, PlannedLoader) else loader.known_length

"""Batches in an order that is a pure function of (seed, pass), sharded by rank, with a cursor that is set in O(1).

A *pass* is one walk over a dataset. Its *plan* is the global list of batches, the same on every rank; batch `g` belongs
to rank `g % world_size`. What a sample draws at random is keyed by (seed, pass, index), so neither workers, ranks nor a
resume change it. The cursor counts batches handed to the loop, never batches a worker has read ahead.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from itertools import islice
from numbers import Integral
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, Sampler

from trainer.interruption import spare_worker
from trainer.keyed import Key, KeyedDataset, Loaded, as_is
from trainer.plan import Indices, make_planner
from trainer.random_state import cpu_state, isolated_rng, mix, pack, set_cpu_state, unpack
from utils.errors import UserError

Batch = Any

# DataLoader settings that say how to load, not what or in which order.
_LOADING = ("num_workers", "pin_memory", "timeout", "worker_init_fn", "multiprocessing_context",
            "prefetch_factor", "persistent_workers", "pin_memory_device", "in_order")  # fmt: skip


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

    Where the batches do not divide by the ranks, the largest of the last round are halved until every rank has one, so
    that none grows and none mixes what a sampler kept apart; with `drop_last` that round is dropped. If it has fewer
    samples than ranks, the others repeat one that must not count (`is_padding`).
    """

    def __init__(
        self,
        loader: DataLoader,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        limit: int | None = None,
        skip_bad: bool = False,
    ) -> None:
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
        self._reader = KeyedDataset(loader.dataset, skip_bad, loader.collate_fn, makes_batches=self._unbatched)
        # A generator of its own: opening an iterator must not draw from the training's generators.
        generator = torch.Generator().manual_seed(mix(seed) >> 1)
        self._loader: DataLoader = DataLoader(self._reader, generator=generator, collate_fn=as_is, **order, **loading)
        if len(self) == 0:
            raise UserError(f"a dataloader yields no batches: its dataset has {len(loader.dataset)} items")  # type: ignore[arg-type]

    def __len__(self) -> int:
        rounds, rest = divmod(len(self._plan), self._world_size)
        rounds += bool(rest) and not self._drop_last
        return rounds if self._limit is None else min(rounds, self._limit)

    def length_of(self, number: int) -> int:
        """Batches of this rank in pass `number`: a sampler need not have as many in every pass."""
        if number != self._number:
            self._number, self._plan = number, self._planner(number)
        return len(self)

    def start(self, number: int, cursor: int = 0) -> None:
        """Go to pass `number`, behind its first `cursor` batches of this rank."""
        self.length_of(number)
        self._cursor = cursor
        if hasattr(self._reader.dataset, "set_epoch"):
            self._reader.dataset.set_epoch(number)

    def __iter__(self) -> Generator[Loaded, None, None]:
        for loaded in self._loader:
            if loaded.error is not None:
                raise UserError(loaded.error)
            yield loaded

    def read(self, number: int, position: int) -> Batch:
        """One batch of any pass, in this process and beside the walk."""
        before = self._number, self._plan
        if number != self._number:
            self._number, self._plan = number, self._planner(number)
        try:
            keys = self._keys_at(position)
        finally:
            self._number, self._plan = before
        return self._reader.load(keys).batch

    def state_dict(self) -> None:
        """None: the cursor is all there is."""

    def is_padding(self, position: int) -> bool:
        """Whether this rank's batch at `position` only keeps it in step with the others."""
        return not self._is_complete(position) and self._rank >= len(self._round(position))

    def _is_complete(self, position: int) -> bool:
        """Whether the plan has a batch for every rank at `position`: only the last round may lack some."""
        return (position + 1) * self._world_size <= len(self._plan)

    def _round(self, position: int) -> list[Indices]:
        """What the ranks read at `position`; fewer than them only where there are fewer samples."""
        first = position * self._world_size
        batches = [self._plan[g] for g in range(first, min(first + self._world_size, len(self._plan)))]
        while len(batches) < self._world_size and len(largest := max(batches, key=len)) > 1:
            half = len(largest) // 2
            batches[batches.index(largest)] = largest[:half]
            batches.append(largest[half:])
        return batches

    def _indices(self, position: int) -> Indices:
        if self._is_complete(position):
            return self._plan[position * self._world_size + self._rank]
        batches = self._round(position)
        return batches[self._rank] if self._rank < len(batches) else batches[0][:1]

    def _keys(self) -> Iterator[Any]:
        for position in range(self._cursor, len(self)):
            keys = self._keys_at(position)
            yield keys[0] if self._unbatched else keys

    def _keys_at(self, position: int) -> list[Key]:
        indices = self._indices(position)
        if not self._reader.draws:
            return [(index, 0) for index in indices]
        of_pass = mix(self._seed, self._number)
        if all(type(index) is int for index in indices):
            return [(index, mix(index, start=of_pass)) for index in indices]
        keys: list[Key] = []
        for place, index in enumerate(indices):
            # A sampler may hand out whole cuts instead of numbers: those go by their place in the plan.
            number = int(index) if isinstance(index, Integral) else mix(position * self._world_size + self._rank, place)
            # One that comes again in a pass says so, to be drawn anew.
            visit = getattr(index, "visit", 0)
            keys.append((index, mix(number, *([visit] if visit else []), start=of_pass)))
        return keys


class StreamLoader:
    """Any other iterable of batches: an IterableDataset's loader, a list, an endless generator.

    The order is the source's own. Every rank reads it all and keeps its share of each complete round; a source that
    shards itself says so by `shards_itself = True`. What it draws at random is seeded by (seed, pass) and drawn apart
    from the training's generators. A cursor is reached by reading up to it, unless the source offers `state_dict` and
    `load_state_dict`: then it is set there, at the source's own promise.
    """

    def __init__(self, source: Iterable, *, seed: int, rank: int = 0, world_size: int = 1, limit: int | None = None):
        self._source, self._seed, self._limit = source, seed, limit
        owner = getattr(source, "dataset", source)
        alone = bool(getattr(owner, "shards_itself", False))
        self._rank, self._world_size = (0, 1) if alone else (rank, world_size)
        self._number, self._cursor = 0, 0
        self._state: dict[str, Any] | None = None
        self._rng: Any = None
        self._num_batches = _len_or_none(source)
        self._has_state = hasattr(source, "state_dict") and hasattr(source, "load_state_dict")

    @property
    def known_length(self) -> int | None:
        """Batches of a pass per rank; None where the source does not say."""
        if self._num_batches is None:
            return None
        length = self._num_batches // self._world_size
        return length if self._limit is None else min(length, self._limit)

    def start(self, number: int, cursor: int = 0, state: dict[str, Any] | None = None) -> None:
        """Go to pass `number`, behind its first `cursor` batches of this rank, by `state` where there is one."""
        self._number, self._cursor, self._state = number, cursor, state
        for part in (
            self._source,
            getattr(self._source, "dataset", None),
            getattr(self._source, "batch_sampler", None),
        ):
            if hasattr(part, "set_epoch"):
                part.set_epoch(number)  # type: ignore[union-attr]

    def state_dict(self) -> dict[str, Any] | None:
        """Where the source stands, in its own words; None where it has none."""
        if not self._has_state:
            return None
        return {"source": self._source.state_dict(), "rng": pack(self._rng)}  # type: ignore[attr-defined]

    def __iter__(self) -> Generator[Loaded, None, None]:
        if isinstance(self._source, DataLoader):
            self._source.worker_init_fn = _WorkerStart(self._source.worker_init_fn)
            self._source.generator = torch.Generator().manual_seed(mix(self._seed, self._number) >> 1)
        with isolated_rng(self._seed, self._number):
            self._rng = cpu_state()
        if self._state is None:
            yield from islice(self._rounds(), self._cursor, self._limit)
            return
        self._source.load_state_dict(self._state["source"])  # type: ignore[attr-defined]
        self._rng = unpack(self._state["rng"])
        yield from islice(self._rounds(), None if self._limit is None else self._limit - self._cursor)

    def _rounds(self) -> Iterator[Loaded]:
        source = self._apart(iter, self._source)
        while True:
            together = self._apart(list, islice(source, self._world_size))
            if len(together) < self._world_size:
                return
            yield Loaded(together[self._rank], 1, [])

    def _apart(self, function: Callable[[Any], Any], argument: Any) -> Any:
        """Call with the stream's own generators: it may draw in this process, where a training draws as well."""
        trainings = cpu_state()
        set_cpu_state(self._rng)
        try:
            return function(argument)
        finally:
            self._rng = cpu_state()
            set_cpu_state(trainings)

    def is_padding(self, position: int) -> bool:
        return False


def _len_or_none(source: Any) -> int | None:
    try:
        return len(source)
    except TypeError:
        return None


def plan_loader(loader: Any, *, skip_bad: bool = False, **where: Any) -> PlannedLoader | StreamLoader:
    """Wrap what the user gave: `where` is seed, rank, world_size and limit.

    Args:
        skip_bad: leave out samples that raise `BadSample`; a stream must do so itself.
    """
    if isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset):
        return PlannedLoader(loader, skip_bad=skip_bad, **where)
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
        on_loaded: Callable[[Loaded], None] = lambda loaded: None,
    ) -> None:
        self._loader, self._to_device, self._repeat = loader, to_device, repeat_first_pass
        self._on_loaded = on_loaded
        self._endless = epoch_length is not None
        self.epoch_length = epoch_length or _pass_length(loader)
        self.number, self.cursor = 0, 0
        self.is_padding = False
        self.wait_seconds = 0.0
        self.cpu_seconds = 0.0  # of reading, here or in workers; of a stream it is not known
        self.iterator: Generator[Loaded, None, None] | None = None
        self._source_state: dict[str, Any] | None = None

    def epoch(self, num_taken: int) -> Iterator[tuple[Batch, bool]]:
        """Yield (batch, is the epoch's last) for what is left of an epoch of which `num_taken` batches are gone."""
        if self.epoch_length is None:
            yield from self._until_exhausted()
            return
        length = self.epoch_length
        if isinstance(self._loader, PlannedLoader) and not self._endless:
            length = self._loader.length_of(0 if self._repeat else self.number)
        for taken in range(num_taken + 1, length + 1):
            yield self._take(self._next()), taken == length
        if not self._endless:
            self._close()

    def _until_exhausted(self) -> Iterator[tuple[Batch, bool]]:
        # One batch of look-ahead: only the end of the source tells that an epoch is over.
        loaded: Loaded | None = self._next()
        while loaded is not None:
            state = self._loader.state_dict()
            following = self._read()
            self._source_state = state
            yield self._take(loaded), following is None
            loaded = following
        self._close()

    def _next(self) -> Loaded:
        """The next batch, of the next pass where this one has come to its end."""
        loaded = self._read()
        if loaded is None:
            if self.cursor == 0:
                raise UserError("train_dataloader yields no batches")
            self._close()
            return self._next()
        return loaded

    def _read(self) -> Loaded | None:
        started = time.perf_counter()
        if self.iterator is None:
            number = 0 if self._repeat else self.number
            if isinstance(self._loader, StreamLoader):
                self._loader.start(number, self.cursor, self._source_state)
            else:
                self._loader.start(number, self.cursor)
            self.iterator = iter(self._loader)
        loaded = next(self.iterator, None)
        self.wait_seconds += time.perf_counter() - started
        return loaded

    def _take(self, loaded: Loaded) -> Batch:
        self.is_padding = loaded.is_substitute or self._loader.is_padding(self.cursor)
        self.cursor += 1
        self.cpu_seconds += loaded.cpu_seconds
        self._on_loaded(loaded)
        return self._to_device(loaded.batch)

    def _close(self) -> None:
        self.iterator = self._source_state = None
        self.number, self.cursor = self.number + 1, 0

    def close(self) -> None:
        """Let go of data workers now: left to the garbage collector each would be waited for 5 seconds."""
        if self.iterator is not None:
            self.iterator.close()

    def read_again(self, number: int, cursor: int) -> Batch | None:
        """A batch by its place, beside the walk; None where the source can be read only once."""
        if not isinstance(self._loader, PlannedLoader):
            return None
        return self._to_device(self._loader.read(0 if self._repeat else number, cursor))

    def state_dict(self) -> dict[str, int]:
        return {"number": self.number, "cursor": self.cursor}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.number, self.cursor, self.iterator = state["number"], state["cursor"], None

    def source_state(self) -> dict[str, Any] | None:
        """Where a stream stands by its own account, on this rank; None where the cursor is all there is."""
        if self.iterator is None or self.epoch_length is None:
            return self._source_state
        return self._loader.state_dict()

    def load_source_state(self, state: dict[str, Any] | None) -> None:
        self._source_state = state


def _pass_length(loader: PlannedLoader | StreamLoader) -> int | None:
    return len(loader) if isinstance(loader, PlannedLoader) else loader.known_length

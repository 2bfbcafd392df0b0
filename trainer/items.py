"""The items of a loader, each by a key that stays its own from run to run, and batches of those that are wanted."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import islice
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler, SequentialSampler

from trainer.data import plan_loader
from trainer.keyed import told
from trainer.plan import make_planner
from utils.errors import BadSample

Bad = dict[str, Any]

_LOADING = ("num_workers", "pin_memory", "timeout", "worker_init_fn", "multiprocessing_context", "prefetch_factor",
            "persistent_workers", "pin_memory_device", "in_order")  # fmt: skip


class Read(NamedTuple):
    """Some items, collated: `batch` of `indices`, None where none of them could be used; and those that could not."""

    indices: list[int]
    batch: Any
    bad: dict[int, list[Bad]]


class Share(NamedTuple):
    """One rank's batches of a loader whose order is its own."""

    without: Collection[str]
    rank: int
    num_ranks: int

    def has(self, number: int, key: str) -> bool:
        """Whether the batch is one of them."""
        return number % self.num_ranks == self.rank and key not in self.without


class Items:
    """What a loader would hand out, each once: neither shuffled nor dropped.

    An item's key is its id in the dataset's `records`, behind the name of its part where the dataset has `named` parts;
    where ids are not known beforehand it is `#<index>`. Of a loader whose order is its own (a stream, a sampler that
    hands out whole cuts) a batch is an item, in the order in which it comes.

    Args:
        loader: a DataLoader or any other iterable of batches.
    """

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self._dataset = getattr(loader, "dataset", None)
        self._indices = _plain_indices(loader)
        self._keys = None if self._indices is None else _keys_of(self._dataset)
        self._durations = None if self._indices is None else _durations_of(self._dataset)
        self.num_walked = 0  # batches of a loader whose order is its own

    @property
    def bad_samples(self) -> list[Bad]:
        """What the dataset left out by itself."""
        return list(getattr(self._dataset, "bad_samples", ()))

    @property
    def keys(self) -> list[str]:
        """Of all items, in order; of a loader whose order is its own, once it was walked."""
        return [self.key(index) for index in (range(self.num_walked) if self._indices is None else self._indices)]

    def key(self, index: int) -> str:
        """The key of the item at `index` of the dataset."""
        return f"#{index}" if self._keys is None else self._keys[index]

    def ordered(self, keys: Collection[str]) -> list[str]:
        """Those of `keys` in order."""
        return [key for key in self.keys if key in keys]

    def seconds_of(self, indices: Sequence[int]) -> float:
        """How long items are together; 0 where the dataset does not tell."""
        return 0.0 if self._durations is None else float(self._durations[list(indices)].sum())

    def fingerprint(self) -> list[str]:
        """Hashes by which the dataset tells its content from another."""
        told_by = getattr(self._dataset, "fingerprint", None)
        return list(_hashes(told_by())) if callable(told_by) else []

    def batches(self, without: Collection[str], rank: int = 0, num_ranks: int = 1) -> list[list[int]] | Share:
        """This rank's batches of the items whose keys are not in `without`, the longest items first."""
        if self._indices is None:
            return Share(without, rank, num_ranks)
        wanted = [index for index in self._indices if self.key(index) not in without]
        return _batches(self._loader, wanted, self._durations)[rank::num_ranks]

    def read(self, batches: list[list[int]] | Share) -> Iterator[Read]:
        """The batches, read as the loader would: by its workers, with its collate function."""
        if isinstance(batches, Share):
            yield from self._walk(batches)
            return
        if not batches:
            return
        loading = {name: getattr(self._loader, name) for name in _LOADING if hasattr(self._loader, name)}
        collate = _Apart(self._loader.collate_fn)
        numbered = DataLoader(_Numbered(self._dataset), batch_sampler=batches, collate_fn=collate, **loading)
        planned = plan_loader(numbered, seed=0)
        planned.start(0)
        for loaded in planned:
            yield loaded.batch

    def _walk(self, own: Share) -> Iterator[Read]:
        """Everybody walks all of it: its length is known at its end."""
        planned = plan_loader(self._loader, seed=0, skip_bad=True)
        planned.start(0)
        self.num_walked = 0
        for number, loaded in enumerate(planned):
            self.num_walked = number + 1
            if own.has(number, self.key(number)):
                batch = None if loaded.is_substitute else loaded.batch
                yield Read([number] if batch is not None else [], batch, {number: loaded.bad} if loaded.bad else {})


class _Numbered(Dataset):
    """Items with their indices; one that can not be used is in its place."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    @property
    def deterministic(self) -> bool:
        return getattr(self.dataset, "deterministic", False)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[int, Any]:
        try:
            return index, self.dataset[index]
        except BadSample as error:
            return index, _Unusable(told(error))


class _Unusable(NamedTuple):
    told: Bad


class _Apart:
    """Collates what can be used, and keeps what can not apart."""

    def __init__(self, collate: Any) -> None:
        self.collate = collate

    def __call__(self, numbered: Sequence[tuple[int, Any]]) -> Read:
        usable = [(index, item) for index, item in numbered if not isinstance(item, _Unusable)]
        bad = {index: [item.told] for index, item in numbered if isinstance(item, _Unusable)}
        batch = self.collate([item for _, item in usable]) if usable else None
        return Read([index for index, _ in usable], batch, bad)


def _plain_indices(loader: Any) -> list[int] | None:
    """The items that a loader would read, in the dataset's order; None where it does not go by indices."""
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return None
    if loader.batch_size is None and loader.batch_sampler is None:
        return None
    if _has_plain_order(loader):
        return list(range(len(loader.dataset)))  # type: ignore[arg-type]
    plan = make_planner(loader, seed=0)[0](0)
    found = [index for batch in plan for index in batch]
    return sorted({int(index) for index in found}) if all(isinstance(index, Integral) for index in found) else None


def _has_plain_order(loader: DataLoader) -> bool:
    sampler = loader.sampler
    whole = type(sampler) is SequentialSampler or (
        type(sampler) is RandomSampler and not sampler.replacement and sampler.num_samples == len(loader.dataset)  # type: ignore[arg-type]
    )
    return whole and type(loader.batch_sampler) is BatchSampler


def _batches(loader: DataLoader, wanted: Sequence[int], durations: np.ndarray | None) -> list[list[int]]:
    if type(loader.batch_sampler) is not BatchSampler:
        left = set(wanted)
        found = []
        for batch in make_planner(loader, seed=0)[0](0):
            own = [int(index) for index in dict.fromkeys(batch) if index in left]
            left -= set(own)
            found += [own] if own else []
        return found
    order = list(wanted) if durations is None else sorted(wanted, key=lambda index: (-durations[index], index))
    size = loader.batch_size or 1
    return [order[start : start + size] for start in range(0, len(order), size)]


def _durations_of(dataset: Any) -> np.ndarray | None:
    durations = getattr(dataset, "durations", None)
    return None if durations is None else np.asarray(durations, dtype=np.float64)


def _keys_of(dataset: Any) -> list[str] | None:
    named = getattr(dataset, "named", None)
    if named is not None:
        parts = {name: _keys_of(part) for name, part in named.items()}
        if any(keys is None for keys in parts.values()):
            return None
        return [f"{name}/{key}" for name, keys in parts.items() for key in keys or ()]
    records = getattr(dataset, "records", None)
    if records is None:
        return None
    times: dict[str, int] = {}
    keys = []
    for record in islice(records, len(dataset)):
        name = str(record["id"])
        times[name] = times.get(name, 0) + 1
        keys.append(name if times[name] == 1 else f"{name}#{times[name]}")
    return keys


def _hashes(content: Any) -> Iterator[str]:
    if isinstance(content, dict):
        for key, value in content.items():
            if key == "sha256":
                yield str(value)
            else:
                yield from _hashes(value)

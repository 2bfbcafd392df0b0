"""Reading samples: each by its key, each bad one left out and named, wherever the reading happens."""

from __future__ import annotations

import time
from collections.abc import Callable
from numbers import Integral
from typing import Any, NamedTuple

import torch
from torch.utils.data import Dataset

from trainer.random_state import cpu_state, seed_cpu, set_cpu_state
from utils.errors import BadSample, UserError

Key = tuple[Any, int]  # (index, seed)

_MOST_SUBSTITUTES = 100


class Loaded(NamedTuple):
    """A batch on its way from where it was read, maybe in a data worker, to the loop.

    Attributes:
        num_samples: how many it was meant to have.
        bad: `{"id", "source", "reason", "detail"}` of those left out.
        is_substitute: none of its own could be used: others stand in, only to keep ranks in step.
        error: a sentence that ends the run.
        cpu_seconds: what reading and collating it cost, on one core.
    """

    batch: Any
    num_samples: int
    bad: list[dict[str, str | None]]
    is_substitute: bool = False
    error: str | None = None
    cpu_seconds: float = 0.0


def told(error: BadSample) -> dict[str, str | None]:
    """A bad sample as a line of bad_samples.jsonl."""
    return {"id": error.sample_id, "source": error.source, "reason": error.reason, "detail": str(error)}


class KeyedDataset(Dataset):
    """Reads the samples of a batch by their keys `(index, seed)`: the generators are seeded before each.

    A dataset with a true `deterministic` attribute draws nothing and is spared the seeding (`draws` is False).

    Args:
        skip_bad: leave out what raises `BadSample`, instead of ending the run.
        collate: samples to a batch.
        makes_batches: what the dataset returns is a batch already, and goes to `collate` alone.
    """

    def __init__(
        self, dataset: Dataset, skip_bad: bool, collate: Callable[[Any], Any], makes_batches: bool = False
    ) -> None:
        self.dataset = dataset
        self._skip_bad, self._collate, self._makes_batches = skip_bad, collate, makes_batches
        self.draws = not getattr(dataset, "deterministic", False)

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, key: Key) -> Loaded:
        return self.load([key])

    def __getitems__(self, keys: list[Key]) -> Loaded:
        return self.load(keys)

    def load(self, keys: list[Key]) -> Loaded:
        """The batch of `keys`. An error of the user's comes as a sentence: out of a worker it would be a traceback."""
        if torch.utils.data.get_worker_info() is not None:  # its generators and its one thread serve nothing else
            return self._load_or_tell(keys)
        before = cpu_state() if self.draws else None
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # for a clip's small tensors more are slower, ten times and over where cores are busy
        try:
            return self._load_or_tell(keys)
        finally:
            torch.set_num_threads(threads)
            if before is not None:
                set_cpu_state(before)

    def _load_or_tell(self, keys: list[Key]) -> Loaded:
        started = time.thread_time()
        try:
            loaded = self._load(keys)
        except UserError as error:
            return Loaded(None, len(keys), [], error=str(error))
        return loaded._replace(cpu_seconds=time.thread_time() - started)

    def _load(self, keys: list[Key]) -> Loaded:
        if self._makes_batches:
            return Loaded(self._collate(self._read(*keys[0])), 1, [])
        try:
            return Loaded(self._collate([self._read(*key) for key in keys]), len(keys), [])
        except BadSample:
            if not self._skip_bad:
                raise
        return self._load_usable(keys)

    def _load_usable(self, keys: list[Key]) -> Loaded:
        samples: list[Any] = []
        bad: list[dict[str, str | None]] = []
        for index, seed in keys:
            try:
                samples.append(self._read(index, seed))
            except BadSample as error:
                bad.append(told(error))
        if not samples:
            return Loaded(self._collate(self._substitutes(keys, bad)), len(keys), bad, is_substitute=True)
        return Loaded(self._collate(samples), len(keys), bad)

    def _substitutes(self, keys: list[Key], bad: list[dict[str, str | None]]) -> list[Any]:
        """As many readable samples, the next in the dataset's own order."""
        first, seed = keys[0]
        samples: list[Any] = []
        for offset in range(1, _MOST_SUBSTITUTES + len(keys)) if isinstance(first, Integral) else ():
            try:
                samples.append(self._read((int(first) + offset) % len(self), seed))
            except BadSample:
                continue
            if len(samples) == len(keys):
                break
        if not samples:
            raise UserError(
                f"not one of {_MOST_SUBSTITUTES} samples in a row can be used, the first because: {bad[0]['detail']}"
            )
        return samples

    def _read(self, index: Any, seed: int) -> Any:
        if self.draws:
            seed_cpu(seed)
        return self.dataset[index]


def as_is(loaded: Any) -> Any:
    """The `collate_fn` of a loader over a `KeyedDataset`, which has collated already."""
    return loaded

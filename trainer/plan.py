"""Which samples make up which batch: the global plan of a pass, a pure function of (seed, pass)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler

from trainer.random_state import isolated_rng, mix
from utils.errors import UserError

Indices = list[Any]


class Plan(Sequence[Indices]):
    """The batches of one pass: batch `g` is cut from `order` when asked for."""

    def __init__(self, order: Sequence[Any] | torch.Tensor, batch_size: int, drop_last: bool) -> None:
        self._order, self._batch_size = order, batch_size
        self._length = len(order) // batch_size if drop_last else -(-len(order) // batch_size)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, g: int) -> Indices:  # type: ignore[override]
        if not 0 <= g < self._length:
            raise IndexError(f"batch {g} of {self._length}")  # what ends a `for`
        piece = self._order[g * self._batch_size : (g + 1) * self._batch_size]
        return piece.tolist() if isinstance(piece, torch.Tensor) else list(piece)


def make_planner(loader: DataLoader, seed: int) -> tuple[Callable[[int], Sequence[Indices]], bool]:
    """From a loader's own settings, a function pass -> plan, and whether incomplete batches are dropped.

    Sequential and shuffled loaders are planned directly; any other sampler is asked, with the generators seeded by
    (seed, pass), and a batch sampler may offer `batches(pass) -> sequence` or `set_epoch(pass)`.

    Raises:
        UserError: a sampler takes a rank's share by itself.
    """
    batch_sampler, sampler = loader.batch_sampler, loader.sampler
    _refuse_sharding(batch_sampler)
    _refuse_sharding(sampler)
    if batch_sampler is not None and type(batch_sampler) is not BatchSampler:
        drop_last = bool(getattr(batch_sampler, "drop_last", False))
        return lambda number: _ask_batch_sampler(batch_sampler, seed, number), drop_last
    batch_size, drop_last = loader.batch_size or 1, bool(loader.drop_last)
    dataset: Any = loader.dataset  # with a sampler of its own it need not have a length

    def plan(number: int) -> Plan:
        if type(sampler) is SequentialSampler:
            return Plan(range(len(dataset)), batch_size, drop_last)
        if type(sampler) is RandomSampler and not sampler.replacement and sampler.num_samples == len(dataset):
            order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(mix(seed, number) >> 1))
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


def _refuse_sharding(sampler: Any) -> None:
    """Lhotse's samplers (`world_size`) and torch's DistributedSampler would take a share, and then we one of that."""
    for name in ("world_size", "num_replicas"):
        if (ranks := getattr(sampler, name, 1)) != 1:
            raise UserError(
                f"{type(sampler).__name__} deals out its batches to {ranks} ranks, which the Trainer does: "
                f"give it {name}=1, rank=0"
            )

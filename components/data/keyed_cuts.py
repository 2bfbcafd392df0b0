"""Datasets of Lhotse's under the Trainer's random numbers."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from torch.utils.data import Dataset

# Where Lhotse's datasets keep transforms, and these a generator of their own.
_TRANSFORMS = ("cut_transforms", "input_transforms", "transforms")
_GENERATORS = ("random", "rng")


class KeyedCuts(Dataset):
    """A dataset that makes a batch of a `CutSet`, as `lhotse.dataset.K2SpeechRecognitionDataset`, with its draws keyed.

    Some of Lhotse's transforms (PerturbSpeed, PerturbVolume, ReverbWithImpulseResponse, CutMix) keep a generator that
    goes on from batch to batch, in every worker its own; so what a batch draws would depend on what was read before it,
    and a resumed run would draw other numbers. Here each gets one seeded from `random` before every batch.

    Args:
        dataset: Lhotse's; its `cut_transforms` and `input_transforms` are what is seeded.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitem__(self, cuts: Any) -> Any:
        for transform in _transforms(self.dataset):
            for name in _GENERATORS:
                if hasattr(transform, name):
                    setattr(transform, name, random.Random(random.getrandbits(64)))
        return self.dataset[cuts]


def _transforms(owner: Any) -> Iterator[Any]:
    for name in _TRANSFORMS:
        for transform in getattr(owner, name, None) or ():
            yield transform
            yield from _transforms(transform)

"""Several datasets as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch.utils.data import ConcatDataset as TorchConcatDataset
from torch.utils.data import Dataset

from utils.errors import UserError


class ConcatDataset(TorchConcatDataset):
    """The datasets one after the other.

    Args:
        datasets: name -> dataset, so that one can be added or removed at the prompt, or a list. None is left out.
        name_key: each item (a mapping) also says under this key which part it is from: `task`, say, where the parts
            are named after their tasks. None: it does not.

    Raises:
        UserError: no dataset is left.
    """

    def __init__(self, datasets: Mapping[str, Dataset | None] | Sequence[Dataset], name_key: str | None = None) -> None:
        if not isinstance(datasets, Mapping):
            datasets = {str(i): dataset for i, dataset in enumerate(datasets)}
        self.named = {name: dataset for name, dataset in datasets.items() if dataset is not None}
        if not self.named:
            raise UserError("a ConcatDataset needs at least one dataset")
        super().__init__(self.named.values())
        self._name_key, self._names = name_key, list(self.named)

    def __getitem__(self, index: int) -> Any:
        item = super().__getitem__(index)
        if self._name_key is None:
            return item
        return {**item, self._name_key: self.part_of(index)}

    def part_of(self, index: int) -> str:
        """The name of the part that item `index` is from."""
        index = index if index >= 0 else len(self) + index
        return self._names[int(np.searchsorted(self.cumulative_sizes, index, side="right"))]

    @property
    def deterministic(self) -> bool:
        """Whether every part is."""
        return all(getattr(dataset, "deterministic", False) for dataset in self.datasets)

    @property
    def durations(self) -> np.ndarray:
        """Seconds of each clip, float64 `[N]`."""
        return np.concatenate([np.asarray(dataset.durations, dtype=np.float64) for dataset in self.datasets])

    def set_epoch(self, epoch: int) -> None:
        """Tell the parts that want to know."""
        for dataset in self.datasets:
            if hasattr(dataset, "set_epoch"):
                dataset.set_epoch(epoch)

    def fingerprint(self) -> dict[str, Any]:
        """The fingerprint of each part, by name."""
        return {name: dataset.fingerprint() for name, dataset in self.named.items()}

"""Several datasets as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils.data import ConcatDataset as TorchConcatDataset
from torch.utils.data import Dataset

from utils.errors import UserError


class ConcatDataset(TorchConcatDataset):
    """The datasets one after the other.

    Args:
        datasets: name -> dataset, so that one can be added or removed at the prompt, or a list. None is left out.

    Raises:
        UserError: no dataset is left.
    """

    def __init__(self, datasets: Mapping[str, Dataset | None] | Sequence[Dataset]) -> None:
        if not isinstance(datasets, Mapping):
            datasets = {str(i): dataset for i, dataset in enumerate(datasets)}
        self.named = {name: dataset for name, dataset in datasets.items() if dataset is not None}
        if not self.named:
            raise UserError("a ConcatDataset needs at least one dataset")
        super().__init__(self.named.values())

    @property
    def deterministic(self) -> bool:
        """Whether every part is."""
        return all(getattr(dataset, "deterministic", False) for dataset in self.datasets)

    @property
    def durations(self) -> list[float]:
        """Seconds of each clip."""
        return [seconds for dataset in self.datasets for seconds in dataset.durations]

    def fingerprint(self) -> dict[str, Any]:
        """The fingerprint of each part, by name."""
        return {name: dataset.fingerprint() for name, dataset in self.named.items()}

"""What a sampler must know of a dataset's items without reading them: lengths and labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from numbers import Real
from typing import Any

import numpy as np
from torch.utils.data import ConcatDataset, Subset

from utils.errors import UserError

Length = str | Callable[[dict[str, Any]], float]


def lengths_of(dataset: Any, length: Length = "duration") -> np.ndarray:
    """The length of each item, float64 `[N]`.

    Args:
        dataset: has `durations` (seconds) or `records`; or is a concatenation or a subset of such.
        length: "duration"; another field of the records, whose number counts, or the number of characters, tokens, ...
            in it; or a function of a record.

    Raises:
        UserError: the dataset does not tell; an item has no such field; a length is negative or not finite.
    """
    lengths = np.asarray(_lengths(dataset, length), dtype=np.float64)
    bad = np.flatnonzero(~(np.isfinite(lengths) & (lengths >= 0)))
    if len(bad):
        raise UserError(f"item {bad[0]} of the dataset has the length {lengths[bad[0]]}, a sampler can not place it")
    return lengths


def _lengths(dataset: Any, length: Length) -> Any:
    if isinstance(dataset, ConcatDataset):
        return np.concatenate([lengths_of(part, length) for part in dataset.datasets])
    if isinstance(dataset, Subset):
        return lengths_of(dataset.dataset, length)[np.asarray(dataset.indices, dtype=np.int64)]
    if length == "duration" and hasattr(dataset, "durations"):
        return dataset.durations
    measure = length if callable(length) else _measure(length)
    return [measure(record) for record in records_of(dataset)]


def records_of(dataset: Any) -> Iterator[dict[str, Any]]:
    """The record of each item in turn.

    Raises:
        UserError: the dataset has none.
    """
    if isinstance(dataset, ConcatDataset):
        for part in dataset.datasets:
            yield from records_of(part)
    elif isinstance(dataset, Subset):
        records = list(records_of(dataset.dataset))
        yield from (records[index] for index in dataset.indices)
    elif hasattr(dataset, "records"):
        yield from dataset.records
    else:
        raise UserError(
            f"a sampler can not tell the items of a {type(dataset).__name__} apart: it needs `records` (or `durations`)"
        )


def _measure(field: str) -> Callable[[dict[str, Any]], float]:
    def measure(record: dict[str, Any]) -> float:
        value = record.get(field)
        if isinstance(value, bool) or value is None:
            raise UserError(f"{record.get('id')!r} has no {field!r} that a sampler could go by")
        return float(value) if isinstance(value, Real) else len(value)

    return measure


def labels_of(dataset: Any, label: str) -> list[list[str]]:
    """The classes of each item: what its record has under `labels` for this target, or in a field of this name.

    A list where there are several; an empty one where there is none.
    """
    found = []
    for record in records_of(dataset):
        value = (record.get("labels") or {}).get(label, record.get(label))
        values = value if isinstance(value, (list, tuple)) else [] if value is None else [value]
        found.append([str(one) for one in values])
    return found

"""Items to batches.  Shapes: B batch, T samples, L frames or tokens, F features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from components.labels import UNKNOWN
from utils.errors import UserError

# The project's names for how long a thing is; any other `<x>` gets `<x>_lens`.
_LENGTH_NAMES = {"waveform": "audio_lens", "features": "feature_lens", "tokens": "token_lens"}


class PadCollate:
    """Pad tensors at their end and stack them; remember the true lengths.

    `{"id": str, "waveform": [1, T], "targets": {target: int}, "seed": int}` items become `{"id": list[str],
    "waveform": [B, 1, max T], "audio_lens": int64 [B], "targets": {target: int64 [B]}, "seed": int64 [B]}`.
    What is named `waveform`, or ends so, is padded along its last dimension; `features [L, F]` and any other tensor or
    array along its first, and `<name>_lens` (`feature_lens`, `token_lens`) has the lengths. Numbers become a tensor,
    anything else a list.

    Args:
        pad_values: name -> what it is padded with, 0 by default: `{tokens: 0, labels: -100}`. Lists of numbers under
            these names are made tensors first.
        pad_to_multiple_of: name -> the padded length is a multiple of this, `{features: 8}`.
        time_last: more names that are padded along their last dimension.
        optional: fields that an item may lack, as in batches of several tasks. The batch says who has them,
            `has_<field>` bool `[B]`, always; an item without gets length 0, class -100, number 0 or None in its place,
            and a field that no item has is not in the batch.

    Raises:
        UserError: an item lacks a field that is not optional.
    """

    def __init__(
        self,
        pad_values: Mapping[str, float] | None = None,
        pad_to_multiple_of: Mapping[str, int] | None = None,
        time_last: Sequence[str] = (),
        optional: Sequence[str] = (),
    ) -> None:
        self.pad_values, self.pad_to_multiple_of = dict(pad_values or {}), dict(pad_to_multiple_of or {})
        self.time_last, self.optional = tuple(time_last), tuple(optional)

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = {}
        for name in dict.fromkeys(name for item in items for name in item):
            values = [item.get(name) for item in items]
            if name in self.optional:
                values = _with_substitutes(values, self._dim(name))
            elif any(name not in item for item in items):
                raise UserError(self._tell_missing(name, items))
            batch |= self._stack(name, values)
        for name in self.optional:
            batch[f"has_{name}"] = torch.tensor([_is_there(item.get(name)) for item in items])
            if not batch[f"has_{name}"].any():
                batch.pop(name, None)
        return batch

    def _stack(self, name: str, values: list[Any]) -> dict[str, Any]:
        if any(isinstance(value, np.ndarray) for value in values) or name in self.pad_values:
            values = [torch.as_tensor(value) for value in values]
        if isinstance(values[0], Tensor) and values[0].ndim:
            dim = self._dim(name)
            lens = torch.tensor([value.shape[dim] for value in values], dtype=torch.int64)
            padded = _pad(values, dim, self.pad_values.get(name, 0), self.pad_to_multiple_of.get(name, 1))
            return {name: padded, _LENGTH_NAMES.get(name, f"{name}_lens"): lens}
        return {name: _numbers(values)}

    def _dim(self, name: str) -> int:
        return -1 if name.endswith("waveform") or name in self.time_last else 0

    def _tell_missing(self, name: str, items: Sequence[Mapping[str, Any]]) -> str:
        without = next(item for item in items if name not in item)
        return (
            f"item {without.get('id')!r} has no {name!r}, others of its batch do: give the collate_fn "
            f"optional: [{', '.join((*self.optional, name))}], or batch tasks apart"
        )


def _pad(values: list[Tensor], dim: int, fill: float, multiple: int) -> Tensor:
    """Stack `[B, ...]`, with `fill` behind the end of each along `dim`."""
    longest = max(value.shape[dim] for value in values)
    longest += -longest % multiple
    shape = list(values[0].shape)
    shape[dim] = longest
    padded = values[0].new_full((len(values), *shape), fill)
    for row, value in zip(padded, values):
        row.narrow(dim, 0, value.shape[dim]).copy_(value)
    return padded


def _numbers(values: list[Any]) -> Any:
    """A tensor of numbers; of mappings, a mapping of such, where an item without a key has the class -100."""
    first = values[0]
    if isinstance(first, Mapping):
        names = dict.fromkeys(name for value in values for name in value)
        return {name: _numbers([value.get(name, UNKNOWN) for value in values]) for name in names}
    if all(isinstance(value, (bool, int, float, Tensor)) for value in values):
        return torch.tensor(values)
    return values


def _is_there(value: Any) -> bool:
    return value is not None and not (isinstance(value, (Mapping, Sequence, Tensor)) and len(value) == 0)


def _with_substitutes(values: list[Any], dim: int) -> list[Any]:
    """Nothing of the right kind in the place of what is missing; `dim` is the one without a length."""
    present = [value for value in values if value is not None]
    if not present or len(present) == len(values):
        return values
    return [_nothing_like(present[0], dim) if value is None else value for value in values]


def _nothing_like(value: Any, dim: int) -> Any:
    if isinstance(value, Mapping):
        return {}
    if isinstance(value, (bool, int, float)):
        return type(value)(0)
    if isinstance(value, (Tensor, np.ndarray)):
        value = torch.as_tensor(value)
        return value.narrow(dim, 0, 0) if value.ndim else torch.zeros_like(value)
    return [] if isinstance(value, list) else None

"""Items to batches.  Shapes: B batch, T samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

# The project's name for how long a waveform is; any other `<x>` gets `<x>_lens`.
_LENGTH_NAMES = {"waveform": "audio_lens"}


class PadCollate:
    """Pad tensors with zeros behind their last dimension and stack them; remember the true lengths.

    `{"id": str, "waveform": [1, T], "targets": {target: int}, "seed": int}` items become `{"id": list[str],
    "waveform": [B, 1, max T], "audio_lens": int64 [B], "targets": {target: int64 [B]}, "seed": int64 [B]}`.
    """

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = {}
        for name, first in items[0].items():
            values = [item[name] for item in items]
            batch[name] = _stack(values)
            if isinstance(first, Tensor) and first.ndim:
                lens = [value.shape[-1] for value in values]
                batch[_LENGTH_NAMES.get(name, f"{name}_lens")] = torch.tensor(lens, dtype=torch.int64)
        return batch


def _stack(values: list[Any]) -> Any:
    first = values[0]
    if isinstance(first, Mapping):
        return {name: _stack([value[name] for value in values]) for name in first}
    if isinstance(first, Tensor) and first.ndim:
        longest = max(value.shape[-1] for value in values)
        return torch.stack([pad(value, (0, longest - value.shape[-1])) for value in values])
    if isinstance(first, (bool, int, float, Tensor)):
        return torch.tensor(values)
    return values

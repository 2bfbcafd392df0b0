"""What a batch was, for people: its ids, lengths and shapes; and as a file to look into."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

_MOST_LENGTHS = 256


def describe(batch: Any) -> dict[str, Any]:
    """Ids, lengths (of fields with `len` in their names), shapes, and the names of what is no tensor."""
    fields = batch if isinstance(batch, Mapping) else {"batch": batch}
    tensors = {name: value for name, value in fields.items() if isinstance(value, torch.Tensor)}
    shapes = {name: f"{str(t.dtype).removeprefix('torch.')}{list(t.shape)}" for name, t in tensors.items()}
    lengths = {
        name: tensor.tolist()
        for name, tensor in tensors.items()
        if "len" in str(name) and tensor.dim() == 1 and tensor.numel() <= _MOST_LENGTHS
    }
    others = [name for name in fields if name not in shapes]
    return {"ids": ids(batch), "lengths": lengths, "shapes": shapes, "other_keys": others}


def in_words(batch: Any) -> str:
    """`ids a, b; audio_lens 16000, 12000; audio float32[2, 16000]`."""
    told = describe(batch)
    parts = [f"ids {', '.join(told['ids'])}"] if told["ids"] else []
    parts += [f"{name} {', '.join(map(str, values))}" for name, values in told["lengths"].items()]
    parts += [f"{name} {shape}" for name, shape in told["shapes"].items() if name not in told["lengths"]]
    return "; ".join(parts) or f"a {type(batch).__name__}"


def ids(batch: Any) -> list[str]:
    """The batch's `id` entries, as text."""
    found = batch.get("id", ()) if isinstance(batch, Mapping) else ()
    return [str(i) for i in found]


def storable(value: Any) -> Any:
    """The batch in types that `torch.load(weights_only=True)` reads; of anything else the repr."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return torch.from_numpy(value.copy())
    if isinstance(value, Mapping):
        return {str(name): storable(member) for name, member in value.items()}
    if isinstance(value, (list, tuple)):
        return [storable(member) for member in value]
    return value if value is None or isinstance(value, (str, int, float, bool)) else repr(value)

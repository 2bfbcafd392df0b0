"""Low-rank updates in files of weights: read as the plain weights that they make.

`components.layers.add_lora` keeps of a layer `parametrizations.weight.original [O, ...]`, and under
`parametrizations.weight.0.` the `up [O, R]`, `down [R, I]` and `scale []` of its update. A model without updates knows
one `weight`, and so does whoever loads the file: inference, judges, a further training.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

_ORIGINAL = ".parametrizations.weight.original"
_UPDATE = ".parametrizations.weight.0."


def layers_with_updates(names: Collection[str], own: Collection[str]) -> list[str]:
    """The layers that have an update among `names`, and none in the model of the names `own`."""
    layers = (name.removesuffix(f"{_UPDATE}up") for name in names if name.endswith(f"{_UPDATE}up"))
    return [layer for layer in layers if f"{layer}{_ORIGINAL}" not in own]


def plain_names(frozen: Mapping[str, str], layers: Collection[str]) -> dict[str, str]:
    """`frozen`, its values under the names that a model without updates has for them."""
    plain = {f"{layer}{_ORIGINAL}": f"{layer}.weight" for layer in layers}
    return {plain.get(name, name): value for name, value in frozen.items()}


def merge_updates(tensors: Mapping[str, Tensor], layers: Collection[str]) -> dict[str, Tensor]:
    """`tensors` with the updates of `layers` in their weights; updates whose weight is not there stay as they are."""
    merged = dict(tensors)
    for layer in layers:
        names = [f"{layer}{_UPDATE}{part}" for part in ("up", "down", "scale")]
        kept = next((name for name in (f"{layer}{_ORIGINAL}", f"{layer}.weight") if name in merged), None)
        if kept is None or names[0] not in merged:
            continue
        weight, up, down, scale = (merged.pop(name) for name in (kept, *names))
        merged[f"{layer}.weight"] = torch.addmm(weight.flatten(1), up * scale, down).view_as(weight)
    return merged

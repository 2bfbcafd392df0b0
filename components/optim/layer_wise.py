"""Learning rates that fall from a model's top to its bottom."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from utils.errors import UserError


def layer_wise_groups(
    module: nn.Module, lr: float, decay: float = 0.9, layers: str = r"encoder\.(.*\.)?layers\.(?P<number>\d+)\."
) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer: each layer's rate is `decay` times that of the layer above it (Howard & Ruder
    2018, arXiv:1801.06146, 3.2; Clark et al. 2020, arXiv:2003.10555).

    What a model has in front of its layers, by the order of its parameters, has `decay` times the rate of the first
    layer; what it has behind them, and everything else, has `lr`. Frozen parameters are left out.

    Args:
        module: what is trained.
        lr: of the heads, and the last layer's over `decay`.
        decay: from 0 to 1.
        layers: regular expression for the start of a layer's parameters' names; its group `number` counts the layers.

    Raises:
        UserError: no parameter has such a name.
    """
    names = [name for name, _ in module.named_parameters()]
    numbers = {name: int(found["number"]) for name in names if (found := re.match(layers, name))}
    if not numbers:
        raise UserError(f"layer_wise_groups: no parameter is called like {layers!r}, but {', '.join(names[:3])}, ...")
    root = next(iter(numbers)).split(".")[0] + "."  # "encoder.": what is in front of its layers goes with them
    top, first = max(numbers.values()) + 1, names.index(next(iter(numbers)))
    groups: dict[int, dict[str, Any]] = {}
    for place, (name, parameter) in enumerate(module.named_parameters()):
        in_front = name.startswith(root) and place < first
        below = top - numbers[name] if name in numbers else (top + 1 if in_front else 0)
        group = groups.setdefault(below, {"params": [], "lr": lr * decay**below})
        if parameter.requires_grad:
            group["params"].append(parameter)
    return [groups[below] for below in sorted(groups) if groups[below]["params"]]

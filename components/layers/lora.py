"""Low-rank adaptation of layers (Hu et al. 2021, arXiv:2106.09685).

Shapes: I inputs (of a convolution: channels times kernel), O outputs, R rank.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from utils.errors import UserError

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d)


class LowRankUpdate(nn.Module):
    """A weight `[O, ...]` plus `alpha / rank` times the product of `up [O, R]`, at first zero, and `down [R, I]`."""

    scale: Tensor

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        like = {"device": weight.device, "dtype": weight.dtype}
        self.down = nn.Parameter(torch.empty(rank, weight[0].numel(), **like))
        self.up = nn.Parameter(torch.zeros(weight.shape[0], rank, **like))
        self.register_buffer("scale", torch.tensor(alpha / rank, **like))  # saved: a checkpoint merges without a config
        nn.init.kaiming_uniform_(self.down, a=5**0.5)

    def forward(self, weight: Tensor) -> Tensor:
        """`[O, ...]` to the same."""
        return torch.addmm(weight.flatten(1), self.up * self.scale, self.down).view_as(weight)


def add_lora(module: nn.Module, patterns: Sequence[str], rank: int = 8, alpha: float = 16.0) -> list[str]:
    """Freeze `module`, and let the linear layers and convolutions of these names learn a low-rank update.

    A layer's weight is then `parametrizations.weight.original`, its update `parametrizations.weight.0` of the layer.

    Args:
        patterns: of names with `*` and `?`, such as `blocks.*.attention.*`.
        rank: R.
        alpha: the update's scale, times the rank.

    Returns:
        The names of the layers.

    Raises:
        UserError: a pattern is of no such layer, only of some that the module keeps frozen itself, or of one whose
            weight another layer shares.
    """
    layers = {name: layer for name, layer in module.named_modules() if _has_weight(layer)}
    chosen: list[str] = []
    for pattern in patterns:
        fitting = [name for name in layers if fnmatchcase(name, pattern)]
        if not fitting:
            few = ", ".join(list(layers)[:8])
            raise UserError(f"LoRA: no linear layer or convolution is called {pattern!r}; there are {few}, ...")
        chosen += (trained := [name for name in fitting if layers[name].weight.requires_grad])
        if not trained:
            raise UserError(f"LoRA: what {pattern!r} names ({fitting[0]}, ...) is frozen by the model itself")
    wanted = set(chosen)
    chosen = [name for name in layers if name in wanted]
    _refuse_shared(module, chosen, layers)
    module.requires_grad_(False)
    for name in chosen:
        parametrize.register_parametrization(layers[name], "weight", LowRankUpdate(layers[name].weight, rank, alpha))
    return chosen


def _has_weight(layer: nn.Module) -> bool:
    """Not where it is computed from other parameters, as by weight normalisation."""
    return isinstance(layer, _LAYERS) and isinstance(layer._parameters.get("weight"), nn.Parameter)


def _refuse_shared(module: nn.Module, chosen: Sequence[str], layers: dict[str, nn.Module]) -> None:
    """An update of one layer, once merged, would be in all layers that share its weight."""
    count = Counter(id(p) for _, p in module.named_parameters(remove_duplicate=False))
    for name in chosen:
        if count[id(layers[name].weight)] > 1:
            raise UserError(f"LoRA: another layer shares the weight of {name}, leave it out of the patterns")


def merge_lora(module: nn.Module) -> None:
    """Add the updates of `add_lora` to the weights; the module is then as large and as fast as without."""
    for layer in list(module.modules()):
        if not parametrize.is_parametrized(layer, "weight"):
            continue
        if any(isinstance(update, LowRankUpdate) for update in layer.parametrizations["weight"]):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)

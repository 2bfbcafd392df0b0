"""Low-rank adaptation of linear layers (Hu et al. 2021, arXiv:2106.09685).  Shapes: I inputs, O outputs, R rank."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from utils.errors import UserError


class LowRankUpdate(nn.Module):
    """A weight `[O, I]` plus `alpha / rank` times the product of `up [O, R]`, at first zero, and `down [R, I]`."""

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        self.scale = alpha / rank
        self.down = nn.Parameter(torch.empty(rank, weight.shape[1], device=weight.device, dtype=weight.dtype))
        self.up = nn.Parameter(torch.zeros(weight.shape[0], rank, device=weight.device, dtype=weight.dtype))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)

    def forward(self, weight: Tensor) -> Tensor:
        """`[O, I]` to `[O, I]`."""
        return torch.addmm(weight, self.up, self.down, alpha=self.scale)


def add_lora(module: nn.Module, patterns: Sequence[str], rank: int = 8, alpha: float = 16.0) -> list[str]:
    """Freeze `module`, and let the linear layers of these names learn a low-rank update.

    Args:
        patterns: of names with `*` and `?`, such as `blocks.*.attention.*`.
        rank: R.
        alpha: the update's scale, times the rank.

    Returns:
        The names of the layers.

    Raises:
        UserError: a pattern is of no linear layer.
    """
    linear = {name: layer for name, layer in module.named_modules() if isinstance(layer, nn.Linear)}
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in linear):
            raise UserError(
                f"LoRA: no linear layer is called {pattern!r}; there are {', '.join(list(linear)[:8])}, ..."
            )
    module.requires_grad_(False)
    chosen = [name for name in linear if any(fnmatchcase(name, pattern) for pattern in patterns)]
    for name in chosen:
        parametrize.register_parametrization(linear[name], "weight", LowRankUpdate(linear[name].weight, rank, alpha))
    return chosen


def merge_lora(module: nn.Module) -> None:
    """Add the updates of `add_lora` to the weights; the module is then as large and as fast as without."""
    for layer in list(module.modules()):
        if not parametrize.is_parametrized(layer, "weight"):
            continue
        if any(isinstance(update, LowRankUpdate) for update in layer.parametrizations["weight"]):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)

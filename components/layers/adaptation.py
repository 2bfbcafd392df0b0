"""Which part of a trained model is trained on: what the config key `adapt` names.

Both are called with a model whose weights are loaded, before anything else looks at what of it trains. Patterns are
names with `*` (which takes dots too) and `?`, as in `backbone.blocks.*.attention.*`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from components.layers.lora import add_lora
from utils.errors import UserError

logger = logging.getLogger(__name__)


class Lora:
    """Freezes a model, and lets layers learn a low-rank update: see `add_lora`.

    Args:
        patterns: of the names of linear layers and convolutions.
        rank: of the updates.
        alpha: the updates' scale, times the rank.
        also_train: patterns of the names of parameters that are trained as a whole: a new head, norms.

    Raises:
        UserError: `rank` or `alpha` is not above 0; when called: a pattern fits nothing that could train.
    """

    def __init__(
        self, patterns: Sequence[str], rank: int = 8, alpha: float = 16.0, also_train: Sequence[str] = ()
    ) -> None:
        if rank < 1 or alpha <= 0:
            raise UserError(f"adapt: rank must be at least 1 and alpha above 0, got {rank} and {alpha}")
        self.patterns, self.rank, self.alpha, self.also_train = list(patterns), rank, alpha, list(also_train)

    def __call__(self, model: nn.Module) -> None:
        """Change `model` in its place."""
        parameters = dict(model.named_parameters())
        also = _fitting(parameters, self.also_train, "also_train")
        layers = add_lora(model, self.patterns, self.rank, self.alpha)
        for name in also:
            parameters[name].requires_grad_(True)
        more = f", and as a whole {_few(also)}" if also else ""
        logger.info("LoRA of rank %d in %s%s%s", self.rank, _few(layers), more, _share(model))


class TrainOnly:
    """Freezes all of a model but the parameters that fit; those that the model keeps frozen itself stay so.

    Args:
        patterns: of the names of parameters.

    Raises:
        UserError: when called: a pattern fits nothing that could train.
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        self.patterns = list(patterns)

    def __call__(self, model: nn.Module) -> None:
        """Change `model` in its place."""
        parameters = dict(model.named_parameters())
        chosen = _fitting(parameters, self.patterns, "patterns")
        model.requires_grad_(False)
        for name in chosen:
            parameters[name].requires_grad_(True)
        logger.info("training only %s%s", _few(chosen), _share(model))


def _fitting(parameters: dict[str, nn.Parameter], patterns: Sequence[str], key: str) -> list[str]:
    """Names of trainable parameters that fit a pattern, in the model's order."""
    chosen: set[str] = set()
    for pattern in patterns:
        fitting = [name for name in parameters if fnmatchcase(name, pattern)]
        if not fitting:
            few = ", ".join(list(parameters)[:8])
            raise UserError(f"adapt.{key}: no parameter is called {pattern!r}; there are {few}, ...")
        chosen.update(trained := [name for name in fitting if parameters[name].requires_grad])
        if not trained:
            raise UserError(f"adapt.{key}: what {pattern!r} names ({fitting[0]}, ...) is frozen by the model itself")
    return [name for name in parameters if name in chosen]


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _share(model: nn.Module) -> str:
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    trained, total = sum(n for n, trains in sizes if trains), sum(n for n, _ in sizes)
    return f": {trained:,} of {total:,} parameters train"

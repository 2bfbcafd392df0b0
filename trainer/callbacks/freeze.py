"""Keeps parts of a model as they are, for a while or for good."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn

from trainer.callbacks.base import Callback
from trainer.setup import wrap_model
from utils.errors import UserError

if TYPE_CHECKING:
    from trainer.trainer import Trainer


class Freeze(Callback):
    """Freezes the parameters whose names match, until `until_step` updates are done; None: for the whole run.

    Args:
        patterns: regular expressions, matched at the start of names such as `backbone.blocks.0.weight`.
        until_step: the update behind which they train.
        eval_mode: keep modules under the patterns in eval mode too (BatchNorm statistics, dropout).

    Raises:
        UserError: a pattern matches no parameter.
    """

    def __init__(self, patterns: Sequence[str], until_step: int | None = None, eval_mode: bool = True) -> None:
        self._patterns, self._until_step, self._eval_mode = list(patterns), until_step, eval_mode
        self._frozen: list[nn.Parameter] = []
        self._modules: list[nn.Module] = []

    def on_fit_start(self, trainer: Trainer) -> None:
        named = dict(trainer.unwrapped_model.named_parameters())
        for pattern in self._patterns:
            if not any(re.match(pattern, name) for name in named):
                raise UserError(f"callbacks.freeze.patterns: {pattern!r} matches no parameter of the model")
        self._frozen = [p for name, p in named.items() if self._matches(name) and p.requires_grad]
        self._modules = [m for name, m in trainer.unwrapped_model.named_modules() if name and self._matches(name)]
        for parameter in self._frozen:
            parameter.requires_grad_(False)

    def on_train_start(self, trainer: Trainer) -> None:
        self._thaw_if_due(trainer)

    def on_train_epoch_start(self, trainer: Trainer) -> None:
        if self._frozen and self._eval_mode:
            for module in self._modules:
                module.eval()

    def on_update_end(self, trainer: Trainer) -> None:
        self._thaw_if_due(trainer)

    def _thaw_if_due(self, trainer: Trainer) -> None:
        if not self._frozen or self._until_step is None or trainer.global_step < self._until_step:
            return
        for parameter in self._frozen:
            parameter.requires_grad_(True)
        for module in self._modules:
            module.train()
        self._frozen = []
        if not trainer.is_alone:
            wrap_model(trainer)  # DDP looks once at what is trainable

    def _matches(self, name: str) -> bool:
        return any(re.match(pattern, name) for pattern in self._patterns)

"""What is about to be trained, in a few lines."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from torch import nn

from trainer.callbacks.base import Callback

if TYPE_CHECKING:
    from trainer.trainer import Trainer

logger = logging.getLogger(__name__)


class ModelSummary(Callback):
    """Logs the parameters of the model's parts, `depth` levels deep, and the length of the run."""

    def __init__(self, depth: int = 1) -> None:
        self._depth = depth

    def on_train_start(self, trainer: Trainer) -> None:
        if trainer.is_main_process:
            logger.info("%s", summarize(trainer.unwrapped_model, self._depth))
            length = "no fixed number of" if trainer.total_steps is None else trainer.total_steps
            logger.info("%s updates on %d x %s", length, trainer.accelerator.num_processes, trainer.device.type)


def summarize(model: nn.Module, depth: int = 1) -> str:
    """A table: part, class, parameters, how many of them train."""
    rows = [("model", type(model).__name__, *_count(model))]
    for name, module in model.named_modules():
        if name and name.count(".") < depth and _count(module)[0]:
            rows.append((f"  {name}", type(module).__name__, *_count(module)))
    width = max(len(row[0]) for row in rows)
    kind = max(len(row[1]) for row in rows)
    return "\n".join(
        f"{name:<{width}}  {cls:<{kind}}  {total:>12,}" + ("" if total == trainable else f"  ({trainable:,} train)")
        for name, cls, total, trainable in rows
    )


def _count(module: nn.Module) -> tuple[int, int]:
    sizes = [(p.numel(), p.requires_grad) for p in module.parameters()]
    return sum(n for n, _ in sizes), sum(n for n, trains in sizes if trains)

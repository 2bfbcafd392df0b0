"""When a step fails, says on which batch."""

from __future__ import annotations

import json
import logging
from collections import deque
from typing import TYPE_CHECKING, Any

import torch

from trainer.callbacks.base import Callback
from trainer.describe import describe, ids

if TYPE_CHECKING:
    from trainer.step import StepOutput
    from trainer.trainer import Trainer

logger = logging.getLogger(__name__)


class Diagnostics(Callback):
    """On an exception names the batch by its keys, shapes and ids, and the first one whose loss was not finite.

    The same goes to `exp_dir/failed_batch_rank<r>.json`. Losses stay on the device; nothing waits for them.
    """

    def __init__(self) -> None:
        self._batch: Any = None
        self._batch_idx = 0
        self._losses: deque[tuple[int, list[str], torch.Tensor]] = deque()

    def on_train_batch_start(self, trainer: Trainer, batch: Any, batch_idx: int) -> None:
        self._batch, self._batch_idx = batch, batch_idx

    def on_train_batch_end(self, trainer: Trainer, output: StepOutput, batch: Any, batch_idx: int) -> None:
        if output.loss is not None:
            self._losses.append((batch_idx, ids(batch), output.loss.detach()))
        self._batch = None

    def on_log(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        self._losses.clear()

    def on_exception(self, trainer: Trainer, error: BaseException) -> None:
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            return
        report: dict[str, Any] = {"error": repr(error), "epoch": trainer.epoch, "global_step": trainer.global_step}
        if self._batch is not None:
            report["batch"] = {"batch_idx": self._batch_idx, **describe(self._batch)}
        bad = next(((i, ids) for i, ids, loss in self._losses if not bool(torch.isfinite(loss).all())), None)
        if bad is not None:
            report["first_non_finite_loss"] = {"batch_idx": bad[0], "ids": bad[1]}
        if len(report) == 3:
            return
        logger.error("failed in epoch %d, update %d: %s", trainer.epoch, trainer.global_step, json.dumps(report))
        if trainer.exp_dir is not None:
            path = trainer.exp_dir / f"failed_batch_rank{trainer.accelerator.process_index}.json"
            path.write_text(json.dumps(report, indent=1))

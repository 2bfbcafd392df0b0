"""Stops a run that no longer gets better."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trainer.callbacks.base import Callback
from trainer.callbacks.monitor import Monitor

if TYPE_CHECKING:
    from trainer.trainer import Trainer


class EarlyStopping(Callback):
    """Stops after `patience` validations in a row without a gain of more than `min_delta` in `monitor`."""

    def __init__(self, monitor: str = "val/loss", mode: str = "min", patience: int = 3, min_delta: float = 0.0) -> None:
        self._monitor, self._patience, self._min_delta = Monitor(monitor, mode), patience, min_delta
        self._best: float | None = None
        self._num_worse = 0

    def on_validation_end(self, trainer: Trainer) -> None:
        if trainer.global_step == 0:  # the sanity check
            return
        value = self._monitor.value(trainer.metrics, "callbacks.early_stopping.monitor")
        if self._monitor.is_better(value, self._best, by=self._min_delta):
            self._best, self._num_worse = value, 0
            return
        self._num_worse += 1
        if self._num_worse >= self._patience:
            trainer.should_stop = True  # the value is the same on all ranks, and so is this

    def state_dict(self) -> dict[str, Any]:
        return {"best": self._best, "num_worse": self._num_worse}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._best, self._num_worse = state["best"], state["num_worse"]

"""Logs the learning rate of the newest update."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer.callbacks.base import Callback

if TYPE_CHECKING:
    from trainer.trainer import Trainer


class LearningRateMonitor(Callback):
    """`lr`; `lr/<optimizer>` with several, and a number behind where parameter groups differ."""

    def on_log(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        for name, unit in trainer.units.items():
            base = "lr" if len(trainer.units) == 1 else f"lr/{name}"
            rates = unit.learning_rates
            if len(set(rates)) == 1:
                metrics[base] = rates[0]
            else:
                metrics |= {f"{base}/{i}": rate for i, rate in enumerate(rates)}

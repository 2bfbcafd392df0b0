"""A progress bar that costs nothing between two redraws."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from trainer.callbacks.base import Callback

if TYPE_CHECKING:
    from trainer.trainer import Trainer

_SHOWN = ("loss", "accuracy", "wer", "cer")


class ProgressBar(Callback):
    """One bar for the run, in updates, on the main process only.

    Args:
        refresh_seconds: shortest time between two redraws.
        metrics: names to show beside it; None picks losses and the usual scores.
    """

    def __init__(self, refresh_seconds: float = 0.2, metrics: list[str] | None = None) -> None:
        self._refresh_seconds, self._metrics = refresh_seconds, metrics
        self._bar: Any = None
        self._next_look = 0
        self._last_redraw = 0.0

    def on_train_start(self, trainer: Trainer) -> None:
        if not trainer.is_main_process:
            return
        from tqdm import tqdm

        self._bar = tqdm(
            total=trainer.total_steps, initial=trainer.global_step, desc="train", unit="update", dynamic_ncols=True,
            mininterval=0, miniters=1, smoothing=0.1,
        )  # fmt: skip
        self._next_look, self._last_redraw = trainer.global_step + 1, time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, output: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        if step < self._next_look or self._bar is None:
            return
        # Look at the clock only as often as updates fit into the shortest time between redraws.
        elapsed = time.perf_counter() - self._last_redraw
        moved = step - self._bar.n
        self._next_look = step + max(1, int(moved * (self._refresh_seconds / max(elapsed, 1e-6) - 1)))
        if elapsed >= self._refresh_seconds:
            self._redraw(trainer)

    def _redraw(self, trainer: Trainer) -> None:
        step = trainer.global_step
        self._next_look = step + max(1, (step - self._bar.n) // 2)
        self._last_redraw = time.perf_counter()
        self._bar.set_postfix({"epoch": trainer.epoch, **self._chosen(trainer.metrics)}, refresh=False)
        self._bar.update(step - self._bar.n)

    def _chosen(self, metrics: dict[str, float]) -> dict[str, str]:
        wanted = self._metrics
        names = [n for n in metrics if n in wanted] if wanted is not None else \
                [n for n in metrics if n.rsplit("/", 1)[-1] in _SHOWN]  # fmt: skip
        return {name: f"{metrics[name]:.4g}" for name in names}

    def on_validation_end(self, trainer: Trainer) -> None:
        if self._bar is not None:
            self._redraw(trainer)

    def on_train_end(self, trainer: Trainer) -> None:
        self._close(trainer)

    def on_exception(self, trainer: Trainer, error: BaseException) -> None:
        self._close(trainer)

    def _close(self, trainer: Trainer) -> None:
        if self._bar is not None:
            self._redraw(trainer)
            self._bar.close()
            self._bar = None

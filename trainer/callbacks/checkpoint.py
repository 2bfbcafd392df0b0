"""Decides when a checkpoint is written and how long each is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trainer import checkpoint as checkpoints
from trainer.callbacks.base import Callback
from trainer.callbacks.monitor import Monitor
from trainer.state import Every

if TYPE_CHECKING:
    from trainer.trainer import Trainer


@dataclass(frozen=True, slots=True)
class Best:
    """A validated step: `value` of `metric` at update `step`."""

    metric: str
    value: float
    step: int


class ModelCheckpoint(Callback):
    """Keeps three families of checkpoints, each by itself: the last, the best by a metric, and permanent ones.

    `checkpoints/last` and `checkpoints/best` point at the newest and the best. The end of a run is always saved.

    Args:
        every_n_steps, every_n_epochs: cadence of the `last` family; `every_n_epochs` below 1 is a fraction of an epoch.
        keep_last: how many of them stay.
        monitor: the metric of the `best` family, None for none; `mode` "min" or "max".
        keep_best: how many of them stay.
        permanent_every_n_steps: these are never removed.
    """

    def __init__(
        self,
        every_n_steps: int | None = None,
        every_n_epochs: float | None = 1,
        keep_last: int = 1,
        monitor: str | None = None,
        mode: str = "min",
        keep_best: int = 1,
        permanent_every_n_steps: int | None = None,
    ) -> None:
        self._every = Every(every_n_steps, every_n_epochs)
        self._permanent_every = Every(permanent_every_n_steps)
        self._keep_last, self._keep_best = keep_last, keep_best
        self._monitor = Monitor(monitor, mode) if monitor is not None else None
        self._last: list[int] = []
        self._best: list[tuple[float, int]] = []  # best first
        self._permanent: list[int] = []

    @property
    def best(self) -> Best | None:
        """The best validated step so far."""
        if self._monitor is None or not self._best:
            return None
        value, step = self._best[0]
        return Best(self._monitor.metric, value, step)

    def on_update_end(self, trainer: Trainer) -> None:
        if trainer.exp_dir is None or trainer.fast_dev_run:
            return
        step = trainer.global_step
        is_last = self._every.is_due(trainer.state, trainer.updates_per_epoch) or trainer.is_finished()
        is_permanent = self._permanent_every.is_due(trainer.state)
        is_best = self._is_among_best(trainer)
        if not (is_last or is_best or is_permanent):
            return
        if is_last:
            self._last = [*(s for s in self._last if s != step), step][-max(self._keep_last, 1) :]
        if is_permanent:
            self._permanent.append(step)
        self._save(trainer)

    def _is_among_best(self, trainer: Trainer) -> bool:
        """Enter this step's value; whether it belongs to the best."""
        step = trainer.global_step
        if self._monitor is None or self._keep_best == 0 or trainer.state.last_validated_step != step:
            return False
        value = self._monitor.value(trainer.metrics, "callbacks.checkpoint.monitor")
        others = [entry for entry in self._best if entry[1] != step]
        ranked = sorted([*others, (value, step)], key=lambda e: (-self._monitor.rank(e[0]), e[1]))  # type: ignore[union-attr]
        self._best = ranked[: self._keep_best]
        return any(entry[1] == step for entry in self._best)

    def _save(self, trainer: Trainer) -> None:
        folder = trainer.save_checkpoint()
        if not trainer.is_main_process:
            return
        directory = trainer.checkpoint_dir
        if self._last:
            checkpoints.link(directory, "last", directory / f"step_{self._last[-1]:08d}")
        if self._best and folder.name == f"step_{self._best[0][1]:08d}":
            checkpoints.link(directory, "best", folder)
        checkpoints.prune(directory, keep=[*self._last, *(step for _, step in self._best), *self._permanent])

    def state_dict(self) -> dict[str, Any]:
        return {"last": list(self._last), "best": list(self._best), "permanent": list(self._permanent)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._last, self._permanent = list(state["last"]), list(state["permanent"])
        self._best = [(float(value), int(step)) for value, step in state["best"]]

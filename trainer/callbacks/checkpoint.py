"""Decides when a checkpoint is written and how long each is kept."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer import checkpoint as checkpoints
from trainer.callbacks.base import Callback
from trainer.callbacks.monitor import Monitor
from trainer.frozen import FrozenParameters
from trainer.saving import After, SaveError
from trainer.state import Every
from utils.errors import UserError

if TYPE_CHECKING:
    from trainer.checkpoint import Checkpoint
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
    A save that fails is reported and the run goes on; only the one at the end has to succeed.

    Args:
        every_n_steps, every_n_epochs: cadence of the `last` family; `every_n_epochs` below 1 is a fraction of an epoch.
        keep_last: how many of them stay.
        monitor: the metric of the `best` family, None for none; `mode` "min" or "max".
        keep_best: how many of them stay.
        permanent_every_n_steps: these are never removed.
        asynchronous: copy the state and write it behind the training. Off by default: it holds one more copy of weights
            and optimizers in host memory, and a save that fails is known only at the next.
        only_trainable: leave out parameters that are frozen and as the model was built with; they are named and hashed,
            and looked for in the model when it is loaded.
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
        asynchronous: bool = False,
        only_trainable: bool = False,
    ) -> None:
        self._every = Every(every_n_steps, every_n_epochs)
        self._permanent_every = Every(permanent_every_n_steps)
        self._keep_last, self._keep_best = keep_last, keep_best
        self._monitor = Monitor(monitor, mode) if monitor is not None else None
        self._last: list[int] = []
        self._best: list[tuple[float, int]] = []  # best first
        self._permanent: list[int] = []
        self._asynchronous, self._only_trainable = asynchronous, only_trainable
        self._frozen: FrozenParameters | None = None
        self._failure: str | None = None  # of the newest save that this rank knows about

    @property
    def best(self) -> Best | None:
        """The best validated step so far."""
        if self._monitor is None or not self._best:
            return None
        value, step = self._best[0]
        return Best(self._monitor.metric, value, step)

    def on_fit_start(self, trainer: Trainer) -> None:
        if self._asynchronous and trainer.is_sharded:
            raise UserError("callbacks.checkpoint.asynchronous: sharded state can not be copied, set it to false")
        if self._only_trainable:
            self._frozen = FrozenParameters(trainer)

    def on_update_end(self, trainer: Trainer) -> None:
        if trainer.exp_dir is None or trainer.fast_dev_run:
            return
        step = trainer.global_step
        is_last = self._every.is_due(trainer.state, trainer.updates_per_epoch) or trainer.is_finished()
        is_permanent = self._permanent_every.is_due(trainer.state)
        if not (is_last or is_permanent or self._is_candidate(trainer)):
            return
        trainer.finish_saving()  # the families depend on what became of it
        before = self.state_dict()
        is_best = self._is_among_best(trainer)
        if not (is_last or is_best or is_permanent):
            return
        if is_last:
            self._last = [*(s for s in self._last if s != step), step][-max(self._keep_last, 1) :]
        if is_permanent:
            self._permanent.append(step)
        self._save(trainer, before)

    def on_fit_end(self, trainer: Trainer) -> None:
        if self._failure is not None:
            raise UserError(
                f"the run is done, but its last {self._failure}. Make room in {trainer.checkpoint_dir}, then run the "
                "same command with auto_resume=true"
            )

    def _is_candidate(self, trainer: Trainer) -> bool:
        watches = self._monitor is not None and self._keep_best > 0
        return watches and trainer.state.last_validated_step == trainer.global_step

    def _is_among_best(self, trainer: Trainer) -> bool:
        """Enter this step's value; whether it belongs to the best."""
        if self._monitor is None or not self._is_candidate(trainer):
            return False
        step, rank = trainer.global_step, self._monitor.rank
        value = self._monitor.value(trainer.metrics, "callbacks.checkpoint.monitor")
        others = [entry for entry in self._best if entry[1] != step]
        ranked = sorted([*others, (value, step)], key=lambda e: (-rank(e[0]), e[1]))
        self._best = ranked[: self._keep_best]
        return any(entry[1] == step for entry in self._best)

    def _save(self, trainer: Trainer, before: dict[str, Any]) -> None:
        after = After(
            whole=partial(_tidy, last=self._last[-1:], best=[step for _, step in self._best[:1]], keep=self._held()),
            failed=partial(self.load_state_dict, before),
        )
        behind = self._asynchronous and not trainer.is_finished()  # nothing trains behind the last one
        self._failure = None
        try:
            trainer.save_checkpoint(after, asynchronous=behind)
        except SaveError as error:  # logged by the writer
            self._failure = str(error)

    def _held(self) -> list[int]:
        return [*self._last, *(step for _, step in self._best), *self._permanent]

    def on_save_checkpoint(self, trainer: Trainer, checkpoint: Checkpoint) -> None:
        if self._frozen is not None:
            checkpoint.frozen = self._frozen.unchanged()

    def state_dict(self) -> dict[str, Any]:
        return {"last": list(self._last), "best": list(self._best), "permanent": list(self._permanent)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._last, self._permanent = list(state["last"]), list(state["permanent"])
        self._best = [(float(value), int(step)) for value, step in state["best"]]


def _tidy(folder: Path, last: list[int], best: list[int], keep: list[int]) -> None:
    """Point the links at what is newest and best, and only then remove what no family holds."""
    directory = folder.parent
    for name, steps in (("last", last), ("best", best)):
        for step in steps:
            target = directory / f"step_{step:08d}"
            if target.is_dir():
                checkpoints.link(directory, name, target)
    checkpoints.prune(directory, keep)

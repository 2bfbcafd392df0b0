"""Signals that ask a run to end: noted when they come, heeded by all ranks together between two updates or, in a
validation, between two batches.

A stopped run exits with 128 + the signal's number, as a shell would say it: SIGINT 130, SIGUSR1 138, SIGTERM 143.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from utils.errors import UserError

if TYPE_CHECKING:
    from trainer.trainer import Trainer

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_AGREEMENTS = 2.0
_UPDATES_BETWEEN_AGREEMENTS = 1000
_SECONDS_BETWEEN_LOOKS = 1.0


class Interrupted(SystemExit):
    """The run was asked to end, and did; `code` is 128 + the signal's number."""


class Interruption:
    """Notes the first of `signals` that comes; a second SIGINT ends the process at once.

    Attributes:
        received: the number of the signal this process got, 0 for none.
        agreed: the number of the signal all ranks know of, 0 for none.

    Raises:
        UserError: there is no signal of that name, or it can not be caught.
    """

    def __init__(self, signals: Sequence[str]) -> None:
        self._numbers = [_number(name) for name in signals]
        self._before: dict[int, Any] = {}
        self.received = self.agreed = 0

    def __enter__(self) -> Interruption:
        self.received = self.agreed = 0
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            self._before = {number: signal.signal(number, self._note) for number in self._numbers}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before = {}

    def _note(self, number: int, frame: Any) -> None:
        self.received = self.received or number
        if number == signal.SIGINT:  # the system's own: it works even where Python hangs in a collective
            signal.signal(number, signal.SIG_DFL)


def _number(name: str) -> int:
    try:
        number = signal.Signals[name]
    except KeyError:
        raise UserError(f"trainer.stop_signals: there is no signal {name!r}; write SIGTERM, SIGINT, ...") from None
    if number in (signal.SIGKILL, signal.SIGSTOP):
        raise UserError(f"trainer.stop_signals: {name} can not be caught")
    return int(number)


def spare_worker() -> None:
    """In a data worker: leave stopping to the trainer, as launchers send a signal to the whole process group.

    Only the trainer's own SIGTERM is obeyed, and at once: the worker may hang on a queue whose other user was killed.
    It also ends with the trainer. torch's own watch over that misses a trainer killed before the worker looked first.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # a handler is not told who sent it
    threading.Thread(target=_obey_parent, name="sigterm", daemon=True).start()


def _obey_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    is_child = os.getppid() == parent.pid  # else of a fork server's, or of a trainer that is gone already
    while (os.getppid() == parent.pid) if is_child else parent.is_alive():
        received = signal.sigtimedwait([signal.SIGTERM], _SECONDS_BETWEEN_LOOKS)
        if received is not None and received.si_pid == parent.pid:
            break
    os._exit(0)


class Agreement:
    """Lets ranks learn what one of them alone knows: every few seconds, or every update where that takes longer."""

    def __init__(self, device: torch.device, is_alone: bool) -> None:
        self._device, self._is_alone = device, is_alone
        self._next = 0
        self._last: tuple[int, float] | None = None  # update, monotonic seconds

    def is_due(self, step: int) -> bool:
        return step >= self._next

    def exchange(self, step: int, wish: bool, signal_number: int) -> tuple[bool, int]:
        """Whether any rank wishes to stop, and the highest signal any has got. Collective."""
        if self._is_alone:
            return wish, signal_number
        now = time.monotonic()
        pace = float("inf") if self._last is None else (now - self._last[1]) / max(step - self._last[0], 1)
        told = torch.tensor([float(wish), float(signal_number), pace], device=self._device)
        torch.distributed.all_reduce(told, torch.distributed.ReduceOp.MAX)
        any_wish, number, slowest = told.tolist()
        updates = int(min(_SECONDS_BETWEEN_AGREEMENTS / max(slowest, 1e-9), _UPDATES_BETWEEN_AGREEMENTS))
        self._next, self._last = step + max(updates, 1), (step, now)
        return bool(any_wish), int(number)


def leave_validation(trainer: Trainer, last_validated_step: int) -> NoReturn:
    """End inside a validation: a resume does it again, at the same update, and goes on from there.

    Raises:
        Interrupted: always.
    """
    state = trainer.state
    state.last_validated_step, state.owes_validation, state.owes_end = last_validated_step, True, trainer._stop_agreed
    trainer.last_saved_step = -1  # what a rollback may have saved at this update does not know
    # Whoever has changed something for the validation, as an average of weights does, puts it back.
    trainer._call("on_exception", Interrupted(128 + trainer.interruption.agreed))
    leave(trainer)


def leave(trainer: Trainer) -> NoReturn:
    """Save where the callbacks have not, say how to go on, and end.

    Raises:
        Interrupted: always.
    """
    number = trainer.interruption.agreed
    how = "nothing is saved, the trainer has no exp_dir"
    if trainer.exp_dir is not None and not trainer.fast_dev_run:
        if trainer.last_saved_step != trainer.global_step:
            trainer.save_checkpoint()
        how = f"saved in {trainer.exp_dir}; go on with the same command and auto_resume=true"
    if trainer.is_main_process:
        logger.warning("%s: stopped after update %d, %s", signal.Signals(number).name, trainer.global_step, how)
    trainer.accelerator.wait_for_everyone()  # a rank that exits early takes its connections along
    raise Interrupted(128 + number)

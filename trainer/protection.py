"""What surrounds a run: a lock on its folder, stop signals, a watch over hangs, errors in a sentence."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch
from accelerate.utils import broadcast_object_list

from trainer.describe import in_words
from trainer.watchdog import Watchdog
from utils.errors import UserError
from utils.lock import hold, release

if TYPE_CHECKING:
    from trainer.trainer import Trainer

_DEAD_WORKER = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (is killed by signal: [\w ]+|exited \w+)")
_OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory", re.IGNORECASE)
_DEAD_PEER = re.compile(r"Connection (closed|reset) by peer|Connection closed by remote peer|Broken pipe")


@contextmanager
def protected(trainer: Trainer) -> Iterator[None]:
    """Everything that a fit is surrounded with; undone at its end."""
    with ExitStack() as stack:
        try:
            _lock(trainer, stack)
            stack.enter_context(trainer.interruption)
            stack.enter_context(Watchdog(trainer, None if trainer.fast_dev_run else trainer.hang_timeout))
            yield
        except Exception as error:
            told = explain(trainer, error)
            if told is None:
                raise
            raise UserError(told) from error


def _lock(trainer: Trainer, stack: ExitStack) -> None:
    """Hold exp_dir by rank 0 until the end of the fit, or of the process that held it before."""
    if trainer.exp_dir is None or trainer.fast_dev_run:
        return
    problem: list[str | None] = [None]
    if trainer.is_main_process:
        try:
            if hold(trainer.exp_dir):
                stack.callback(release, trainer.exp_dir)
        except UserError as error:
            problem[0] = str(error)
    if not trainer.is_alone:
        broadcast_object_list(problem)
    if problem[0] is not None:
        raise UserError(problem[0])


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of a GPU or of the machine."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)) is not None


def explain(trainer: Trainer, error: Exception) -> str | None:
    """One sentence for what machines do to a run; None for what only a traceback can tell."""
    text = str(error)
    if not isinstance(error, (RuntimeError, MemoryError)):  # torch raises the former for all of these
        return None
    if dead := _DEAD_WORKER.search(text):
        return (
            f"data worker {dead[1].strip()} {dead[2].strip()}: most often the machine ran out of memory (fewer "
            "num_workers, smaller batches) or of shared memory (a larger /dev/shm: docker run --shm-size=8g)"
            f"{_how_to_go_on(trainer)}"
        )
    if is_out_of_memory(error):
        batch = "" if trainer.batch is None else f" on a batch with {in_words(trainer.batch)}"
        split = "" if trainer.split_on_oom else ", trainer.split_on_oom=true"
        return (
            f"out of memory on {trainer.device}, in epoch {trainer.epoch}, update {trainer.global_step}, "
            f"batch {trainer.state.batch_idx}{batch}: use smaller batches with trainer.gradient_accumulation_steps, "
            f"shorter clips, trainer.mixed_precision=bf16{split} or trainer.gradient_checkpointing=true"
            f"{_how_to_go_on(trainer)}"
        )
    if not trainer.is_alone and _DEAD_PEER.search(text):
        return (
            "another process of this run has ended, this one can not go on without it: why is told by that process's "
            f"own error{_how_to_go_on(trainer)}"
        )
    return None


def _how_to_go_on(trainer: Trainer) -> str:
    """Only where there is something to go on from."""
    if trainer.exp_dir is None or not any(trainer.checkpoint_dir.glob("step_*")):
        return ""
    return "; go on from the last checkpoint with auto_resume=true"

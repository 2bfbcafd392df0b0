"""The arithmetic of updates: how long a run is and what its learning-rate schedule is told. Pure functions."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import Any

from utils.errors import UserError

# What the field calls the length of a run, and the length of its warm-up, in a scheduler's signature.
_TOTAL_NAMES = ("num_training_steps", "total_steps", "T_max", "max_steps", "max_iters", "num_steps")
_WARMUP_NAMES = ("num_warmup_steps", "warmup_steps", "warmup_iters", "warmup_updates")


@dataclass(frozen=True, slots=True)
class Lengths:
    """How long a run is, in the unit in which its schedule is stepped: updates, or epochs."""

    total: int | None
    warmup: int
    per_epoch: int | None
    epochs: int | None


def updates_per_epoch(num_batches: int, gradient_accumulation_steps: int) -> int:
    """Updates in an epoch of `num_batches` micro-steps per rank; the last, partial window is an update too."""
    return ceil(num_batches / gradient_accumulation_steps)


def total_updates(epochs: int | None, per_epoch: int | None, max_steps: int | None) -> int | None:
    """Updates in the whole run; None where nothing bounds it."""
    by_epochs = epochs * per_epoch if epochs is not None and per_epoch is not None else None
    bounds = [bound for bound in (by_epochs, max_steps) if bound is not None]
    return min(bounds) if bounds else None


def warmup_updates(steps: int | None, epochs: float | None, per_epoch: int | None) -> int:
    """Warm-up in updates, given in updates or in epochs.

    Raises:
        UserError: both are given, or epochs are given and an epoch has no known length.
    """
    if steps is not None and epochs is not None:
        raise UserError("warmup_params: give warmup_steps or warmup_epochs, not both")
    if epochs is None:
        return steps or 0
    if per_epoch is None:
        raise UserError("warmup_params.warmup_epochs needs an epoch of known length: give warmup_steps instead")
    return round(epochs * per_epoch)


def lengths_in_epochs(lengths: Lengths, warmup_epochs: float | None) -> Lengths:
    """The same run for a schedule that is stepped once an epoch."""
    per_epoch = lengths.per_epoch
    epochs = lengths.epochs
    if epochs is None and lengths.total is not None and per_epoch is not None:
        epochs = ceil(lengths.total / per_epoch)
    warmup = round(warmup_epochs) if warmup_epochs is not None else lengths.warmup // (per_epoch or 1)
    return Lengths(total=epochs, warmup=warmup, per_epoch=1, epochs=epochs)


def injected_lengths(make_scheduler: Callable[..., Any], lengths: Lengths) -> dict[str, int]:
    """The length arguments which `make_scheduler` takes and its config leaves open.

    A scheduler that takes its total directly gets that; one that only knows `epochs` x `steps_per_epoch` gets both.

    Raises:
        UserError: a length is asked for that the run does not have.
    """
    given = make_scheduler.keywords if isinstance(make_scheduler, partial) else {}
    accepted = [name for name in inspect.signature(make_scheduler).parameters if given.get(name) is None]
    injected: dict[str, int | None] = {name: lengths.warmup for name in accepted if name in _WARMUP_NAMES}
    totals = [name for name in accepted if name in _TOTAL_NAMES]
    if given.get("steps_per_epoch") is None:
        injected |= dict.fromkeys(totals, lengths.total)
    if not totals and "steps_per_epoch" in accepted:
        injected |= {
            name: value
            for name, value in (("steps_per_epoch", lengths.per_epoch), ("epochs", lengths.epochs))
            if name in accepted
        }
    missing = [name for name, value in injected.items() if value is None]
    if missing:
        raise UserError(
            f"lr_scheduler: {missing[0]} needs a run of known length: set epochs (and trainer.epoch_length "
            f"for a stream without a length) or max_steps, or give lr_scheduler.{missing[0]} yourself"
        )
    return {name: value for name, value in injected.items() if value is not None}


def steps_on_metric(scheduler: Any) -> bool:
    """Whether `scheduler.step` wants a metric, as ReduceLROnPlateau's does."""
    parameters = list(inspect.signature(scheduler.step).parameters.values())
    return bool(parameters) and parameters[0].name == "metrics"

"""From a running Trainer to a checkpoint and back: what must be known to go on as if nothing had happened."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer import checkpoint as checkpoints
from trainer import sharded
from trainer.checkpoint import Checkpoint
from trainer.random_state import load_rng_state, rng_state
from utils.errors import UserError

if TYPE_CHECKING:
    from trainer.optimization import OptimizerUnit
    from trainer.trainer import Trainer

logger = logging.getLogger(__name__)


def capture(trainer: Trainer) -> Checkpoint:
    """The whole state between two updates."""
    accelerator = trainer.accelerator
    weights = sharded.model_state(trainer.model) if trainer.is_sharded else trainer.unwrapped_model.state_dict()
    training: dict[str, Any] = {
        "state": trainer.state.state_dict(),
        "stream": trainer.stream.state_dict(),
        "units": {name: _unit_state(trainer, unit) for name, unit in trainer.units.items()},
        "callbacks": {name: callback.state_dict() for name, callback in trainer.callbacks.items()},
        "bad_samples": trainer.bad_samples.state_dict(),
        "loss_levels": trainer.loss_levels.state_dict(),
        "metrics": dict(trainer.metrics),
        "last_logged_step": trainer.last_logged_step,
        "num_processes": accelerator.num_processes,
        "gradient_accumulation_steps": trainer.gradient_accumulation_steps,
    }
    if accelerator.scaler is not None:
        training["scaler"] = accelerator.scaler.state_dict()
    own = {"rng": rng_state(), "meters": trainer._meters.state_dict()}
    if (source := trainer.stream.source_state()) is not None:
        own["source"] = source
    return Checkpoint(trainer.state.global_step, {"model": weights}, training, own)


def _unit_state(trainer: Trainer, unit: OptimizerUnit) -> dict[str, Any]:
    state = {} if unit.scheduler is None else {"scheduler": unit.scheduler.state_dict()}
    if trainer.is_sharded:
        return state | {"optimizer": sharded.optimizer_state(trainer.model, unit.torch_optimizer)}
    return state | {"optimizer": unit.torch_optimizer.state_dict()}


def _load_unit_state(trainer: Trainer, unit: OptimizerUnit, state: Mapping[str, Any]) -> None:
    if trainer.is_sharded:
        sharded.load_optimizer_state(trainer.model, unit.torch_optimizer, state["optimizer"])
    else:
        unit.torch_optimizer.load_state_dict(state["optimizer"])
    if unit.scheduler is not None and "scheduler" in state:
        unit.scheduler.load_state_dict(state["scheduler"])
        unit.torch_optimizer._opt_called = True  # by the run that was saved: torch warns of schedules that go ahead


def resume(trainer: Trainer) -> None:
    """Load the checkpoint that `resume_from_checkpoint` or `auto_resume` ask for, if they do."""
    _clean(trainer)
    folder = _folder(trainer)
    trainer._resumed_from = folder
    if folder is None:
        return
    checkpoint = checkpoints.load(folder, rank=trainer.accelerator.process_index)
    num_ranks = checkpoint.training["num_processes"]
    if num_ranks != trainer.accelerator.num_processes:
        checkpoint.rank["meters"] = _all_meters(folder, num_ranks) if trainer.is_main_process else {}
    restore(trainer, checkpoint, str(folder))
    trainer._call("on_load_checkpoint", checkpoint)
    for tracker in trainer._trackers:
        tracker.resume(trainer.global_step)
    if trainer.is_main_process:
        logger.info("resumed from %s: epoch %d, update %d", folder, trainer.epoch, trainer.global_step)


def _all_meters(folder: Path, num_ranks: int) -> dict[str, Any]:
    """The sums that all ranks of another topology had, for one of ours to count on."""
    summed: dict[str, Any] = {}
    for rank in range(num_ranks):
        for name, (total, count) in checkpoints.load_rank(folder, rank).get("meters", {}).items():
            before = summed.get(name, (0, 0))
            summed[name] = (before[0] + total, before[1] + count)
    return summed


def _clean(trainer: Trainer) -> None:
    if trainer.is_main_process and trainer.exp_dir is not None and not trainer.fast_dev_run:
        checkpoints.clean(trainer.checkpoint_dir)
    trainer.accelerator.wait_for_everyone()  # all ranks must see the same folders


def _folder(trainer: Trainer) -> Path | None:
    wanted = trainer.resume_from_checkpoint
    if wanted is not None:
        return checkpoints.find(wanted, trainer.checkpoint_dir)
    return checkpoints.latest(trainer.checkpoint_dir) if trainer.auto_resume and trainer.exp_dir is not None else None


def restore(trainer: Trainer, checkpoint: Checkpoint, source: str) -> None:
    """Put a checkpoint's state into a Trainer that has been set up.

    Raises:
        UserError: the weights or optimizers are of another model, or its batches do not divide by our processes.
    """
    training, accelerator = checkpoint.training, trainer.accelerator
    held = checkpoints.held_tensors(trainer.unwrapped_model, checkpoint.frozen, source)
    for tensors in checkpoint.weights.values():
        tensors.update(held)
    if trainer.is_sharded:
        checkpoints.check_fit(trainer.unwrapped_model, checkpoint.weights["model"], source)
        sharded.load_model_state(trainer.model, checkpoint.weights["model"])
    else:
        checkpoints.load_tensors(trainer.unwrapped_model, checkpoint.weights["model"], source)
    if set(training["units"]) != set(trainer.units):
        raise UserError(f"{source}: it has optimizers {sorted(training['units'])}, this run {sorted(trainer.units)}")
    for name, unit in trainer.units.items():
        _load_unit_state(trainer, unit, training["units"][name])
    for name, callback in trainer.callbacks.items():
        if name in training["callbacks"]:
            callback.load_state_dict(training["callbacks"][name])
        else:
            logger.warning("%s knows no callback %r: it starts afresh", source, name)
    trainer.state.load_state_dict(training["state"])
    trainer.stream.load_state_dict(training["stream"])
    if training["num_processes"] == accelerator.num_processes:  # else the stream is read up to the cursor
        trainer.stream.load_source_state(checkpoint.rank.get("source"))
    trainer.bad_samples.load_state_dict(training.get("bad_samples", {}))
    trainer.loss_levels.load_state_dict(training.get("loss_levels", {}))
    trainer.metrics.update(training["metrics"])
    trainer.last_logged_step = training["last_logged_step"]
    if accelerator.scaler is not None and "scaler" in training:
        accelerator.scaler.load_state_dict(training["scaler"])
    trainer._rng_to_restore = checkpoint.rank.get("rng")
    trainer._meters.load_state_dict(checkpoint.rank.get("meters", {}))
    _change_world(trainer, training["num_processes"], accelerator.num_processes)


def restore_behind(trainer: Trainer, checkpoint: Checkpoint, source: str) -> None:
    """Put back weights, optimizers, schedules and callbacks of a checkpoint, but go on with the data that come next."""
    state, stream = trainer.state, trainer.stream
    place = state.epoch, state.batch_idx, state.epoch_ended
    walk = stream.state_dict(), stream.iterator, stream.source_state()
    restore(trainer, checkpoint, source)
    state.epoch, state.batch_idx, state.epoch_ended = place
    stream.load_state_dict(walk[0])
    stream.iterator = walk[1]
    stream.load_source_state(walk[2])
    trainer._rng_to_restore = None
    trainer._call("on_load_checkpoint", checkpoint)
    for tracker in trainer._trackers:
        tracker.resume(trainer.global_step)


def restore_rng(trainer: Trainer) -> None:
    """The generators last: nothing may draw from them between here and the next batch."""
    if trainer._rng_to_restore is not None:
        load_rng_state(trainer._rng_to_restore)
        trainer._rng_to_restore = None


def _change_world(trainer: Trainer, before: int, now: int) -> None:
    """Per-rank counts of another number of processes become ours: the same global batches follow."""
    if before == now:
        return
    for owner, name in ((trainer.state, "batch_idx"), (trainer.stream, "cursor")):
        batches, rest = divmod(getattr(owner, name) * before, now)
        if rest and not trainer.state.epoch_ended:
            raise UserError(
                f"the checkpoint of {before} processes stands inside a round of {now}: resume with a number of "
                f"processes that divides {getattr(owner, name) * before} batches"
            )
        setattr(owner, name, batches)

"""Validation, test and prediction: the same walk over loaders, with other hooks. Every item counts exactly once."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from trainer.data import PlannedLoader, plan_loader
from trainer.interruption import Agreement
from trainer.metrics import Meters
from trainer.random_state import isolated_rng
from trainer.step import StepOutput, as_output

if TYPE_CHECKING:
    from trainer.trainer import Trainer

_PREFIXES = {"validation": "val/", "test": "test/", "predict": "predict/"}


class BrokenOff(Exception):
    """A validation was left between two batches, as a signal asks the run to end."""


def evaluate(
    trainer: Trainer, stage: str, loaders: Mapping[str | None, Any], limit: int | None, heeds_signals: bool = False
) -> dict[str, float]:
    """Walk over `loaders` with the hooks of `stage` ("validation" or "test"); return the metrics over all ranks.

    Raises:
        BrokenOff: with `heeds_signals`; on all ranks alike, as soon as they know of one.
    """
    step, call = getattr(trainer, f"{stage}_step"), trainer._call
    with _evaluating(trainer, stage, loaders, limit, heeds_signals) as (meters, batches):
        call(f"on_{stage}_start")
        call(f"on_{stage}_epoch_start")
        for batch, batch_idx, is_padding in batches:
            if is_padding:  # only keeps a sharded model's ranks in step
                trainer._meters = _meters(trainer)
                step(batch, batch_idx)
                trainer._meters = meters
                continue
            call(f"on_{stage}_batch_start", batch, batch_idx)
            output = _as_output(step(batch, batch_idx))
            meters.add_output(output, trainer._prefix)
            call(f"on_{stage}_batch_end", output, batch, batch_idx)
        call(f"on_{stage}_epoch_end")
        metrics = meters.reduce()
        trainer.metrics.update(metrics)
        call(f"on_{stage}_end")
    return metrics


def predict(trainer: Trainer, loader: Any) -> list[Any]:
    """What `predict_step` returns for every batch, joined in the order of the data; the same list on every rank."""
    call = trainer._call
    predicted: list[tuple[int, int, list[Any]]] = []
    rank = trainer.accelerator.process_index
    with _evaluating(trainer, "predict", {None: loader}, trainer.limit_predict_batches) as (_, batches):
        call("on_predict_start")
        call("on_predict_epoch_start")
        for batch, batch_idx, is_padding in batches:
            if is_padding:
                trainer.predict_step(batch, batch_idx)
                continue
            call("on_predict_batch_start", batch, batch_idx)
            output = trainer.predict_step(batch, batch_idx)
            predicted.append((batch_idx, rank, list(output) if isinstance(output, (list, tuple)) else [output]))
            call("on_predict_batch_end", output, batch, batch_idx)
        call("on_predict_epoch_end")
        call("on_predict_end")
    if not trainer.is_alone:
        gathered: list[Any] = [None] * trainer.accelerator.num_processes
        torch.distributed.all_gather_object(gathered, predicted)
        predicted = sorted((item for part in gathered for item in part), key=lambda item: item[:2])
    return [record for _, _, records in predicted for record in records]


@contextmanager
def _evaluating(
    trainer: Trainer, stage: str, loaders: Mapping[str | None, Any], limit: int | None, heeds_signals: bool = False
) -> Iterator[tuple[Meters, Iterator[tuple[Any, int, bool]]]]:
    """Eval mode, no gradients, meters and random numbers of its own; all as before at the end."""
    modes = {module: module.training for module in trainer.unwrapped_model.modules()}
    before = trainer.model, trainer._meters, trainer._prefix
    trainer._meters, trainer._prefix = _meters(trainer), _PREFIXES[stage]
    if not trainer.is_sharded:
        trainer.model = trainer.unwrapped_model  # DDP would broadcast buffers at every forward
    trainer.unwrapped_model.eval()
    batches = _batches(trainer, stage, loaders, limit, heeds_signals)
    try:
        # Training must not depend on how often it is validated.
        with torch.no_grad(), isolated_rng(trainer.seed, 1):
            yield trainer._meters, batches
    finally:
        batches.close()
        trainer.model, trainer._meters, trainer._prefix = before
        trainer.dataloader_name = None
        for module, mode in modes.items():
            module.training = mode


def _batches(
    trainer: Trainer, stage: str, loaders: Mapping[str | None, Any], limit: int | None, heeds_signals: bool
) -> Generator[tuple[Any, int, bool], None, None]:
    accelerator = trainer.accelerator
    agreement, num_heeded = Agreement(trainer.device, trainer.is_alone), 0
    for name, loader in loaders.items():
        trainer.dataloader_name = name
        trainer._prefix = _PREFIXES[stage] + (f"{name}/" if name else "")
        planned = plan_loader(
            loader,
            seed=trainer.seed,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            limit=limit,
            skip_bad=trainer.bad_samples.skips,
        )
        planned.start(0)
        for batch_idx, loaded in enumerate(planned):
            trainer.num_evaluated += 1
            trainer.bad_samples.see(loaded)
            is_padding = loaded.is_substitute or planned.is_padding(batch_idx)
            yield trainer.to_device(loaded.batch), batch_idx, is_padding
            # Ranks can talk in between only where each has as many batches as the others.
            if heeds_signals and (trainer.is_alone or isinstance(planned, PlannedLoader)):
                num_heeded += 1
                if agreement.is_due(num_heeded):
                    _leave_if_asked_to(trainer, agreement, num_heeded)
        trainer.bad_samples.settle(at_end=True)


def _leave_if_asked_to(trainer: Trainer, agreement: Agreement, num_batches: int) -> None:
    interruption = trainer.interruption
    _, interruption.agreed = agreement.exchange(num_batches, False, interruption.received)
    if interruption.agreed:
        raise BrokenOff


def _meters(trainer: Trainer) -> Meters:
    return Meters(trainer.device, trainer.accelerator.num_processes)


def _as_output(result: Any) -> StepOutput:
    if result is None:
        return StepOutput(None)
    return StepOutput(None, metrics=result) if isinstance(result, Mapping) else as_output(result)

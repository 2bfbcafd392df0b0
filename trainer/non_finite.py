"""What becomes of a loss, a gradient or a weight that is not finite: `trainer.on_non_finite`.

With `trainer.max_loss_ratio` the same becomes of a finite loss that is far above its level: `trainer.loss_levels`.

raise     The run ends at the next log, validation or save. Nothing waits for the device in between, and no checkpoint
          with such weights is ever written.
skip      The update is left out, on all ranks, and leaves no trace in weights, optimizer, schedule, buffers, meters.
          Asked before every update, which waits for the device once: only this policy pays for that.
rollback  Noticed like `raise`; then the last checkpoint is loaded and training goes on with the data that come next.

The batch is written to `exp_dir/bad_batches`, and `trainer.max_non_finite` bounds how often a run may be saved so.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trainer import checkpoint as checkpoints
from trainer import resume
from trainer.describe import describe, ids, storable
from trainer.loss_levels import Spike
from trainer.optimization import OptimizerUnit
from trainer.step import StepOutput
from utils.errors import UserError
from utils.io import replacing, write_json

if TYPE_CHECKING:
    from trainer.trainer import Trainer

logger = logging.getLogger(__name__)

POLICIES = ("raise", "skip", "rollback")
_REMEMBERED = 4096  # micro-steps between two checks whose losses can be looked up
_SPIKE = "pass over such batches with trainer.on_non_finite=skip or rollback, raise trainer.max_loss_ratio, or "
_ADVICE = "lower the learning rate, clip with trainer.max_grad_norm=1, or look with trainer.detect_anomaly=true"


@dataclass(slots=True)
class _MicroStep:
    name: str
    update: int  # that it is part of
    batch_idx: int
    place: tuple[int, int]  # pass and cursor, to read the batch again
    loss: Tensor
    num_items: Tensor | int | None
    batch: Any = None


class FiniteGuard:
    """Applies the policy of a run. Made when the run is set up, as it remembers the state to go back to."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer, self._policy = trainer, trainer.on_non_finite
        self._skips = trainer.on_non_finite == "skip"
        self._has_scaler = trainer.accelerator.scaler is not None  # it skips overflows by itself
        self._seen: deque[_MicroStep] = deque(maxlen=_REMEMBERED)
        self._buffers = list(trainer.unwrapped_model.buffers())
        self._levels, self._judges = trainer.loss_levels, trainer.max_loss_ratio is not None
        self._lets_pass = not (self._skips or self._judges)
        self._remember()

    # ---------------------------------------------------------------------------------------------- in the hot path

    def see(self, name: str, output: StepOutput, batch: Any, batch_idx: int) -> None:
        """Note a micro-step and its loss called `name`, which stays on the device."""
        assert output.loss is not None, "a training step must return a loss"
        stream, update = self._trainer.stream, self._trainer.global_step + 1
        place, loss, num_items = (stream.number, stream.cursor - 1), output.loss.detach(), output.num_items
        self._seen.append(_MicroStep(name, update, batch_idx, place, loss, num_items, batch if self._skips else None))
        if self._judges:
            self._levels.see(name, update, loss, num_items)

    def allows(self, unit: OptimizerUnit, grad_norm: Tensor | None) -> bool:
        """Whether the update may be done. Collective, and waits for the device, under the policy `skip` alone."""
        if self._lets_pass:
            return True
        if self._judges:
            self._levels.end_update(unit.loss_name, self._trainer.global_step + 1)
        if not self._skips:
            return True
        losses_are_finite, gradient_is_finite = self._look(unit, grad_norm)
        spike = self._levels.first_spike() if losses_are_finite and gradient_is_finite else None
        if losses_are_finite and gradient_is_finite and spike is None:
            self._remember()
            return True
        self._count()
        if spike is not None:
            self._report(f"update skipped, {self._in_words(spike)}", self._high_micro_steps(spike))
        else:
            self._report("update skipped", list(self._seen) if losses_are_finite else self._bad_micro_steps())
        self._restore()
        return False

    # ------------------------------------------------------------------------------------- at log, validation and save

    def accepts_metrics(self, metrics: Mapping[str, float]) -> bool:
        """Whether what is about to be logged is finite, and no loss a spike; else raises, or rolls back: False.

        Collective, as is `accepts_weights`.
        """
        bad = next((name for name, value in metrics.items() if not math.isfinite(value) and self._matters(name)), None)
        if bad is not None:
            return self._give_up(self._not_finite(f"{bad} is {metrics[bad]}"), self._first_bad())
        if not self._accepts_losses():
            return False
        self._remember()
        return True

    def accepts_weights(self) -> bool:
        """Whether weights are finite, and no update behind them a spike; else raises, or rolls back: False."""
        if not self._are_weights_finite():
            return self._give_up(self._not_finite("a weight is not finite"), self._first_bad())
        return self._accepts_losses()

    def _accepts_losses(self) -> bool:
        spike = self._levels.first_spike()
        if spike is None:
            return True
        return self._give_up(self._in_words(spike), self._high_micro_steps(spike), _SPIKE)

    # ------------------------------------------------------------------------------------------------------ internals

    def _matters(self, name: str) -> bool:
        return name.endswith("loss") or (name.endswith("grad_norm") and not self._has_scaler)

    def _look(self, unit: OptimizerUnit, grad_norm: Tensor | None) -> list[bool]:
        losses = torch.stack([torch.isfinite(step.loss).all() for step in self._seen]).all()
        if self._has_scaler:
            gradient = torch.ones_like(losses)
        else:
            norm = unit.gradient_norm() if grad_norm is None else grad_norm
            gradient = torch.isfinite(norm)
        return self._agree(losses, gradient)

    @torch.no_grad()
    def _are_weights_finite(self) -> bool:
        model = self._trainer.unwrapped_model
        parts = [_local(p) for p in model.parameters() if p.is_floating_point()]
        weights = [part for part in parts if part.numel()]  # a rank may have no part of a small one
        # The extremes show what is not finite, and cost a CPU a tenth of an infinity norm.
        extremes = [torch.stack(torch.aminmax(weight)) for weight in weights]
        checks = [torch.isfinite(torch.stack(extremes)).all()] if extremes else []
        # A mask may well hold -inf, but nothing is meant to be not-a-number.
        checks += [~torch.isnan(_local(b)).any() for b in self._buffers if b.is_floating_point() and b.numel()]
        return not checks or self._agree(torch.stack(checks).all())[0]

    def _agree(self, *are_finite: Tensor) -> list[bool]:
        """Each answer, true only where it is on all ranks. Collective; waits for the device."""
        told = torch.stack(are_finite)
        if not self._trainer.is_alone:
            told = told.float()
            torch.distributed.all_reduce(told, torch.distributed.ReduceOp.MIN)
        return [bool(answer) for answer in told.tolist()]

    def _remember(self) -> None:
        self._seen.clear()
        if self._skips:
            self._meters = self._trainer._meters.state_dict()
            self._copies = [buffer.detach().clone() for buffer in self._buffers]

    @torch.no_grad()
    def _restore(self) -> None:
        self._levels.forget()
        self._trainer._meters.load_state_dict(self._meters)
        for buffer, copy in zip(self._buffers, self._copies):
            buffer.copy_(copy)
        self._remember()

    def _not_finite(self, what: str) -> str:
        return f"{what} at update {self._trainer.global_step} (finite until {self._trainer.last_logged_step})"

    def _in_words(self, spike: Spike) -> str:
        return (
            f"train/{spike.name} is {spike.loss:.4g} at update {spike.update}, more than "
            f"{self._trainer.max_loss_ratio:g} times its level of {spike.level:.4g} (trainer.max_loss_ratio)"
        )

    def _give_up(self, told: str, micro_steps: list[_MicroStep], advice: str = "") -> bool:
        trainer = self._trainer
        self._report(told, micro_steps)
        trainer.accelerator.wait_for_everyone()  # the file is there when a rank speaks of it
        self._seen.clear()
        if self._policy != "rollback":
            raise UserError(f"{told}: {advice}{_ADVICE}{self._pointer()}")
        self._count()
        self._roll_back(told)
        return False

    def _count(self) -> None:
        trainer = self._trainer
        trainer.state.num_non_finite += 1
        if trainer.state.num_non_finite > trainer.max_non_finite:
            self._report("one too many", self._bad_micro_steps()[:1])
            raise UserError(
                f"trainer.max_non_finite: update {trainer.global_step} is one more than the {trainer.max_non_finite} "
                f"allowed with a loss or gradient that is not finite{self._or_high()}: {_ADVICE}{self._pointer()}"
            )

    def _roll_back(self, told: str) -> None:
        trainer = self._trainer
        count = trainer.state.num_non_finite
        trainer.finish_saving()  # all ranks must see the same folders
        folder = checkpoints.latest(trainer.checkpoint_dir) if trainer.exp_dir is not None else None
        if folder is None:
            raise UserError(f"{told}, and there is no checkpoint yet to go back to: {_ADVICE}{self._pointer()}")
        checkpoint = checkpoints.load(folder, rank=trainer.accelerator.process_index)
        resume.restore_behind(trainer, checkpoint, str(folder))
        trainer.state.num_non_finite = count
        if trainer.is_main_process:
            logger.warning("%s: back to update %d, on with the data behind", told, trainer.global_step)
        trainer.save_checkpoint()  # in place of the one loaded: a resume must not meet the same batches again

    def _first_bad(self) -> list[_MicroStep]:
        """The first bad micro-step of all ranks, where it is on this one; it spoilt those behind it. Collective."""
        first = next((i for i, step in enumerate(self._seen) if not bool(torch.isfinite(step.loss).all())), _REMEMBERED)
        if not self._trainer.is_alone:
            told = torch.tensor(float(first), device=self._trainer.device)
            torch.distributed.all_reduce(told, torch.distributed.ReduceOp.MIN)
            if first != int(told):
                return []
        return [self._seen[first]] if first < _REMEMBERED else []

    def _bad_micro_steps(self) -> list[_MicroStep]:
        return [step for step in self._seen if not bool(torch.isfinite(step.loss).all())]

    def _high_micro_steps(self, spike: Spike) -> list[_MicroStep]:
        """Those of this rank that make the spike: a mean is above a limit only where one of its parts is."""
        own = [step for step in self._seen if (step.name, step.update) == (spike.name, spike.update)]
        return [s for s in own if float(s.loss) > spike.limit * float(1 if s.num_items is None else s.num_items)]

    def _or_high(self) -> str:
        return "" if self._trainer.max_loss_ratio is None else ", or a loss above trainer.max_loss_ratio"

    def _report(self, reason: str, micro_steps: list[_MicroStep]) -> None:
        """Name the batches of this rank, and write them where they can be looked into."""
        trainer = self._trainer
        for step in micro_steps:
            batch = step.batch if self._skips else trainer.stream.read_again(*step.place)
            if batch is None:  # a stream that can only be read once
                continue
            logger.warning(
                "update %d: %s; epoch %d, batch %d, ids: %s",
                trainer.global_step, reason, trainer.epoch, step.batch_idx, ", ".join(ids(batch)) or "none",
            )  # fmt: skip
            if trainer.exp_dir is not None and not trainer.fast_dev_run:
                try:
                    self._write(trainer.exp_dir / "bad_batches", reason, step, batch)
                except (OSError, RuntimeError) as error:  # torch.save raises the latter where a disk is full
                    logger.warning("the batch could not be written: %s", error)

    def _write(self, folder: Path, reason: str, step: _MicroStep, batch: Any) -> None:
        folder.mkdir(exist_ok=True)
        trainer = self._trainer
        rank = trainer.accelerator.process_index
        stem = f"step_{trainer.global_step:08d}_batch_{step.batch_idx}_rank_{rank}"
        with replacing(folder / f"{stem}.pt") as temporary:
            torch.save(storable(batch), temporary)
        told = {"reason": reason, "loss": float(step.loss), "epoch": trainer.epoch, "batch_idx": step.batch_idx}
        write_json(folder / f"{stem}.json", told | describe(batch))

    def _pointer(self) -> str:
        exp_dir = self._trainer.exp_dir
        has_some = exp_dir is not None and any((exp_dir / "bad_batches").glob("*.pt"))
        return f"; the batch is in {exp_dir}/bad_batches" if has_some else ""


def _local(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor

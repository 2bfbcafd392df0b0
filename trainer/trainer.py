"""The Trainer. Read `fit` and `_train_epoch` first: together they are the whole loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType, send_to_device
from torch import Tensor, nn

from trainer import evaluation, resume, setup, splitting
from trainer.accelerator import make_accelerator, set_determinism
from trainer.bad_samples import BadSamples
from trainer.data import BatchStream
from trainer.hooks import Hooks, resolve_hooks
from trainer.interruption import Agreement, Interruption, leave, leave_validation
from trainer.loss_levels import LossLevels
from trainer.metrics import Meters
from trainer.non_finite import FiniteGuard
from trainer.optimization import OptimizerUnit
from trainer.protection import protected
from trainer.saving import After, CheckpointWriter
from trainer.state import Every, TrainState
from trainer.step import MetricValue, StepOutput, as_output
from trainer.trackers import Tracker
from utils.errors import UserError


@dataclass(eq=False)
class Trainer(Hooks):
    """Trains `model`; a task subclasses this and overrides `training_step` and whichever hooks it needs.

    The fields are the keys of the `trainer` config. A subclass with more is a `@dataclass(eq=False, kw_only=True)`.

    Attributes:
        optimizer: parameters -> Optimizer; or a mapping name -> that, each for the submodule `model.<name>`.
        callbacks, trackers: mappings by name, nulls left out, or sequences; a tracker is called with `exp_dir`.
        lr_scheduler: Optimizer -> schedule, or a mapping by the same names; lengths are injected in updates.
        val_dataloader: a loader, or a mapping name -> loader (metrics: `val/<name>/<metric>`); likewise for test.
        max_time: seconds, or "HH:MM:SS", or "DD:HH:MM:SS".
        epoch_length: batches per epoch and rank, over an endless walk through the data; None: the loader's.
        parameter_groups: `(model) -> parameter groups` for an optimizer; None: all that train, in one.
        lr_scheduler_interval: "step" (update) or "epoch"; a schedule that wants a metric gets `lr_scheduler_monitor`.
        val_every_n_epochs: below 1, a fraction of an epoch. Neither cadence given: once an epoch.
        overfit_batches: train on the first n batches over and over, and validate on them.
        fast_dev_run: n batches of everything; nothing is saved or tracked. True: one.
        mixed_precision: "no", "fp16", "bf16"; None: what the launcher says.
        compile: True, or keyword arguments of `torch.compile`.
        deterministic: True, or "warn" where a kernel has no deterministic form.
        resume_from_checkpoint: a folder, a name under `exp_dir/checkpoints`, or "latest".
        auto_resume: resume from the latest checkpoint of `exp_dir` if there is one.
        on_non_finite: "raise", "skip" or "rollback" where a loss or gradient is not finite; see `trainer.non_finite`.
        max_non_finite: how often a run may skip or roll back.
        max_loss_ratio: a loss above so many times its level is treated like one that is not finite; see
            `trainer.loss_levels`. None: off.
        split_on_oom: take a batch that does not fit into memory in halves; see `trainer.splitting`.
        on_bad_sample: "skip" leaves out what a dataset can not use (`BadSample`) and names it; "raise" ends the run.
        max_bad_fraction: share of bad samples above which a run ends; see `trainer.bad_samples`.
        stop_signals: these end the run at the next update, its state saved; exit code 128 + number.
        hang_timeout: seconds without a finished batch until all stacks are written and the run ends; None: never.
    """

    model: nn.Module
    train_dataloader: Any = None
    optimizer: Any = None
    lr_scheduler: Any = None
    loss_fn: Any = None
    val_dataloader: Any = None
    _: KW_ONLY
    test_dataloader: Any = None
    callbacks: Any = ()
    trackers: Any = ()
    hyperparameters: Mapping[str, Any] | None = None
    exp_dir: Path | None = None
    seed: int = 0

    epochs: int | None = None
    max_steps: int | None = None
    max_time: str | float | None = None
    epoch_length: int | None = None
    min_epochs: int = 0
    min_steps: int = 0

    warmup_steps: int | None = None
    warmup_epochs: float | None = None
    lr_scheduler_interval: str = "step"
    lr_scheduler_monitor: str = "val/loss"
    parameter_groups: Callable[[nn.Module], Any] | None = None

    log_every_n_steps: int = 50
    val_every_n_steps: int | None = None
    val_every_n_epochs: float | None = None
    num_sanity_val_steps: int = 0

    limit_train_batches: int | None = None
    limit_val_batches: int | None = None
    limit_test_batches: int | None = None
    limit_predict_batches: int | None = None
    overfit_batches: int | None = None
    fast_dev_run: bool | int = False

    gradient_accumulation_steps: int = 1
    max_grad_norm: float | None = None
    max_grad_value: float | None = None

    mixed_precision: str | None = None
    compile: bool | Mapping[str, Any] = False
    gradient_checkpointing: bool = False
    deterministic: bool | str = False
    detect_anomaly: bool = False
    find_unused_parameters: bool = False
    sync_batchnorm: bool = False

    resume_from_checkpoint: str | Path | None = None
    auto_resume: bool = False

    on_non_finite: str = "raise"
    max_non_finite: int = 10
    max_loss_ratio: float | None = None
    split_on_oom: bool = False
    on_bad_sample: str = "skip"
    max_bad_fraction: float = 0.2
    stop_signals: Sequence[str] = ("SIGTERM", "SIGINT", "SIGUSR1")
    hang_timeout: float | None = 3600.0

    def __post_init__(self) -> None:
        setup.check_options(self)
        set_determinism(self.deterministic)
        self.accelerator = make_accelerator(self.mixed_precision, self.find_unused_parameters)
        self.device: torch.device = self.accelerator.device
        self.is_main_process: bool = self.accelerator.is_main_process
        self.exp_dir = Path(self.exp_dir) if self.exp_dir is not None else None
        self.callbacks = setup.named(self.callbacks)
        self.unwrapped_model: nn.Module = self.model
        self.state = TrainState()
        self.metrics: dict[str, float] = {}  # the newest value of everything logged
        self.should_stop = False  # set by anyone; all ranks heed it together
        self.dataloader_name: str | None = None  # of the loader being evaluated, where they have names
        self.is_alone: bool = self.accelerator.num_processes == 1
        self.batch: Any = None  # in work, for whoever explains an error
        self.num_evaluated = 0  # batches, in all evaluations: a sign of life
        self.bad_samples = BadSamples(self)
        self.last_saved_step = -1
        self.last_logged_step = 0
        self.interruption = Interruption(self.stop_signals)
        self._agreement = Agreement(self.device, self.is_alone)
        self._writer = CheckpointWriter(self.accelerator)
        # Known once `fit` has set up:
        self.stream: BatchStream = None  # type: ignore[assignment]
        self.loss_levels: LossLevels
        self.guard: FiniteGuard
        self.units: dict[str, OptimizerUnit] = {}
        self.updates_per_epoch: int | None = None
        self.total_steps: int | None = None
        self._val_dataloaders: dict[str | None, Any] = {}
        self._val_every = Every()
        self._trackers: list[Tracker] = []
        self._deadline: float | None = None
        self._resumed_from: Path | None = None
        self._rng_to_restore: dict[str, Any] | None = None
        self._alternates = self._is_ddp = self._on_device = self._stop_agreed = False
        self._checked_unused = self.find_unused_parameters
        self._meters, self._prefix = Meters(self.device, self.accelerator.num_processes), "train/"
        self._hooks = resolve_hooks(self, self.callbacks.values())

    # ------------------------------------------------------------------------------------------------ for subclasses

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """The loss of one batch: a mean, or a `StepOutput` with a sum and a count.

        With several optimizers, a generator: `yield name, loss` runs backward for that optimizer and, at the end of the
        window, its update, before the generator goes on.
        """
        raise UserError(f"{type(self).__name__} needs a training_step(batch, batch_idx)")

    def validation_step(self, batch: Any, batch_idx: int) -> StepOutput | Mapping[str, MetricValue] | None:
        """The loss and metrics of one batch."""
        raise UserError(f"{type(self).__name__} needs a validation_step(batch, batch_idx), or val_dataloader=null")

    def test_step(self, batch: Any, batch_idx: int) -> StepOutput | Mapping[str, MetricValue] | None:
        return self.validation_step(batch, batch_idx)

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        """The predictions for one batch; a list is joined with the others'."""
        raise UserError(f"{type(self).__name__} needs a predict_step(batch, batch_idx)")

    def split_batch(self, batch: Any) -> tuple[Any, Any] | None:
        """Two parts of a batch that did not fit into memory; None where it is of one item. See `split_on_oom`."""
        return splitting.halves(batch)

    def parameters_to_optimize(self, module: nn.Module) -> Any:
        """What an optimizer is given: parameters, or parameter groups."""
        if self.parameter_groups is not None:
            return self.parameter_groups(module)
        return [parameter for parameter in module.parameters() if parameter.requires_grad]

    @property
    def is_sharded(self) -> bool:
        """Whether parameters are spread over ranks (FSDP)."""
        return self.accelerator.distributed_type == DistributedType.FSDP

    @property
    def epoch(self) -> int:
        return self.state.epoch

    @property
    def global_step(self) -> int:
        """Optimizer updates done."""
        return self.state.global_step

    def log(self, name: str, total: Tensor | float, count: Tensor | int = 1) -> None:
        """Add the sum of `count` items to the mean `name` of the stage; nothing for a batch that is only padding."""
        if self._prefix != "train/" or not self.stream.is_padding:
            self._meters.add(self._prefix + name, total, count)

    def log_files(self, files: Mapping[str, Path]) -> None:
        """Show pictures (.png) and sounds (.wav) in the trackers."""
        for tracker in self._trackers:
            tracker.log_files(files, self.state.global_step)

    # ----------------------------------------------------------------------------------------------------- the verbs

    def fit(self) -> None:
        """Train until `epochs`, `max_steps`, `max_time` or an early stop, whichever comes first."""
        try:
            with protected(self):
                setup.set_up(self)
                if not self._resumed_from:
                    self._check_sanity()
                self._call("on_train_start")
                resume.restore_rng(self)
                if self.state.owes_validation:
                    self.should_stop = self._stop_agreed = self.state.owes_end
                    self._finish_update(self.state)
                while not self.is_finished():
                    self._train_epoch()
                self._call("on_train_end")
                self._call("on_fit_end")
                self.finish_saving()
                self.accelerator.wait_for_everyone()  # a rank that exits early takes its connections along
        except BaseException as error:
            self._call("on_exception", error)
            raise
        finally:
            self.batch = None
            if self.stream is not None:
                self.stream.close()
            self._writer.close()
            for tracker in self._trackers:
                tracker.close()

    def validate(self, dataloader: Any = None) -> dict[str, float]:
        """Metrics `val/...` over a loader, or a mapping of named ones."""
        return self._evaluate_alone("validation", dataloader or self.val_dataloader)

    def test(self, dataloader: Any = None) -> dict[str, float]:
        """Metrics `test/...` over a loader, or a mapping of named ones."""
        return self._evaluate_alone("test", dataloader or self.test_dataloader)

    def predict(self, dataloader: Any) -> list[Any]:
        """The predictions for every item in order, on every rank."""
        setup.prepare_evaluation(self)
        return evaluation.predict(self, dataloader)

    def save_checkpoint(self, after: After | None = None, asynchronous: bool = False) -> Path:
        """Write `exp_dir/checkpoints/step_...`, whole or not at all, or begin to. Collective.

        Raises:
            SaveError: on every rank, where one could not write; older checkpoints are as they were.
            UserError: the weights are not finite, and `on_non_finite` is not "rollback".
        """
        self.finish_saving()  # what became of the last one is part of the state
        if not self.guard.accepts_weights():  # gone back to a checkpoint, and that saved again
            return self.checkpoint_dir / f"step_{self.global_step:08d}"
        self.bad_samples.settle()
        checkpoint = resume.capture(self)
        self._call("on_save_checkpoint", checkpoint)
        folder = self._writer.save(checkpoint, self.checkpoint_dir, after, asynchronous)
        if not asynchronous:
            self.last_saved_step = self.global_step
        return folder

    def finish_saving(self) -> None:
        """Wait for an asynchronous save. Collective."""
        self._writer.finish()

    @property
    def best(self) -> Any:
        """The best validated step, with `metric`, `value` and `step`; None where no callback keeps one."""
        kept = (getattr(callback, "best", None) for callback in self.callbacks.values())
        return next((best for best in kept if best is not None), None)

    @property
    def checkpoint_dir(self) -> Path:
        if self.exp_dir is None:
            raise UserError("the trainer has no exp_dir to keep checkpoints in")
        return Path(self.exp_dir) / "checkpoints"

    # ------------------------------------------------------------------------------------------------------ the loop

    def _train_epoch(self) -> None:
        state = self.state
        state.begin_epoch()
        self.model.train()
        self._call("on_train_epoch_start")
        for batch, is_last in self.stream.epoch(state.batch_idx):
            batch_idx = state.batch_idx
            is_update = is_last or (batch_idx + 1) % self.gradient_accumulation_steps == 0
            self.batch = batch
            self._call("on_train_batch_start", batch, batch_idx)
            output = self._micro_step(batch, batch_idx, is_update)
            state.batch_idx += 1
            state.global_step += is_update
            self._call("on_train_batch_end", output, batch, batch_idx)
            if is_update:
                self._after_update(epoch_ended=is_last)
                if self.is_finished():
                    return

    def _micro_step(self, batch: Any, batch_idx: int, is_update: bool) -> StepOutput:
        """Forward and backward of one batch and, where it closes a window, the update; for each optimizer in turn."""
        if self.split_on_oom:
            output = splitting.forward_backward(self, batch, batch_idx)
            if is_update:
                self._update(self.units["model"])
                if not self.is_alone:
                    splitting.share_buffers(self.unwrapped_model)
            return output
        with self._gradient_sync(is_update):
            for unit, output in self._outputs(batch, batch_idx):
                output = self._backward(unit, output, batch, batch_idx)
                if is_update:
                    self._update(unit)
        return output

    def _backward(self, unit: OptimizerUnit, output: StepOutput, batch: Any, batch_idx: int) -> StepOutput:
        if self.stream.is_padding:
            output = output.without_weight()
        unit.backward(output, self._before_backward)
        if not self.stream.is_padding:
            self._meters.add_output(output, "train/", unit.loss_name)
            self.guard.see(unit.loss_name, output, batch, batch_idx)
        self._call("on_after_backward")
        return output

    def _update(self, unit: OptimizerUnit) -> None:
        if self._is_ddp and not self._checked_unused:
            setup.check_unused_parameters(self)
        unit.finish_gradients()
        self._call("on_before_optimizer_step", unit.optimizer)
        grad_norm = unit.clip()
        if grad_norm is not None:
            self._meters.add(unit.grad_norm_name, grad_norm)
        was_updated = self.guard.allows(unit, grad_norm) and unit.step()
        self._call("on_before_zero_grad", unit.optimizer)
        unit.optimizer.zero_grad()
        if was_updated and self.lr_scheduler_interval == "step":
            unit.step_scheduler()

    def _after_update(self, epoch_ended: bool) -> None:
        """What is due between two updates: log, validate, end the epoch; then the state is whole and may be saved."""
        state = self.state
        state.epoch_ended = epoch_ended
        is_log_step = state.global_step % self.log_every_n_steps == 0
        if is_log_step or epoch_ended:
            self.bad_samples.settle(at_end=epoch_ended)
        if is_log_step or epoch_ended or self._agreement.is_due(state.global_step):
            self._agree_to_stop(heed_wishes=is_log_step or epoch_ended or self.is_alone)
        if is_log_step or self.is_finished():
            self._log_training()
        self._finish_update(state)

    def _finish_update(self, state: TrainState) -> None:
        """From the validation on; a resume begins here where a signal broke that off."""
        if state.owes_validation or self._val_every.is_due(state, self.updates_per_epoch) or self.is_finished():
            self._validate()
            state.owes_validation = state.owes_end = False
        if state.epoch_ended:
            self._call("on_train_epoch_end")
            if self.lr_scheduler_interval == "epoch":
                for unit in self.units.values():
                    unit.step_scheduler()
        self._call("on_update_end")
        if self.interruption.agreed and not self.is_finished():
            leave(self)

    def is_finished(self) -> bool:
        """Whether the update just done was the last; the same answer on every rank."""
        state = self.state
        if self.total_steps is not None and state.global_step >= self.total_steps:
            return True
        if self.epochs is not None and state.epochs_completed >= self.epochs:
            return True
        return self._stop_agreed and state.global_step >= self.min_steps and state.epochs_completed >= self.min_epochs

    def _agree_to_stop(self, heed_wishes: bool = True) -> None:
        """Exchange what each rank alone knows, its clock, signals and wishes, so that all stop at the same update.

        Wishes count at logs and epochs' ends alone: a run must not depend on how often ranks find time to talk.
        """
        wish = self.should_stop if heed_wishes else self._stop_agreed
        wish = wish or (self._deadline is not None and time.monotonic() >= self._deadline)
        signal_number = self.interruption.received
        self._stop_agreed, self.interruption.agreed = self._agreement.exchange(self.global_step, wish, signal_number)

    def _outputs(self, batch: Any, batch_idx: int) -> Iterator[tuple[OptimizerUnit, StepOutput]]:
        result = self.training_step(batch, batch_idx)
        if not self._alternates:
            yield self.units["model"], as_output(result)
            return
        for name, loss in result:
            yield self.units[name], as_output(loss)

    def _before_backward(self, loss: Tensor) -> None:
        self._call("on_before_backward", loss)

    def _gradient_sync(self, is_update: bool) -> AbstractContextManager[None]:
        # DDP reduces gradients in backward; within a window that would be reduced again and again.
        wait = self._is_ddp and not is_update
        return self.accelerator.no_sync(self.model) if wait else _NOTHING

    def _call(self, hook: str, *arguments: Any) -> None:
        for function in self._hooks[hook]:
            function(*arguments)

    # ------------------------------------------------------------------------------------------- logging, validation

    def _log_training(self) -> None:
        metrics = self._meters.reduce()
        if not self.guard.accepts_metrics(metrics):
            return
        self.last_logged_step = self.global_step
        self._call("on_log", metrics)
        self._publish(metrics)

    def _publish(self, metrics: Mapping[str, float]) -> None:
        self.metrics.update(metrics)
        for tracker in self._trackers:
            tracker.log(metrics, self.state.global_step, self.state.epoch)

    def _validate(self) -> None:
        state = self.state
        if not self._val_dataloaders or state.last_validated_step == state.global_step:
            return
        if not self.guard.accepts_weights():
            return
        before, state.last_validated_step = state.last_validated_step, state.global_step
        self.bad_samples.settle()
        account = self.bad_samples.state_dict()
        try:
            loaders, limit = self._val_dataloaders, self.limit_val_batches
            metrics = evaluation.evaluate(self, "validation", loaders, limit, heeds_signals=True)
        except evaluation.BrokenOff:
            self.bad_samples.load_state_dict(account)
            leave_validation(self, before)
        self._publish(metrics)
        for unit in self.units.values():
            unit.step_scheduler_on(self.metrics, self.lr_scheduler_monitor)
        self._agree_to_stop()

    def _check_sanity(self) -> None:
        if self._val_dataloaders and self.num_sanity_val_steps:
            evaluation.evaluate(self, "validation", self._val_dataloaders, self.num_sanity_val_steps)

    def _evaluate_alone(self, stage: str, dataloader: Any) -> dict[str, float]:
        if dataloader is None:
            raise UserError(f"{stage}: there is no dataloader for it")
        setup.prepare_evaluation(self)
        limit = self.limit_val_batches if stage == "validation" else self.limit_test_batches
        return evaluation.evaluate(self, stage, setup.named_loaders(dataloader), limit)

    def to_device(self, batch: Any) -> Any:
        return batch if self.device.type == "cpu" else send_to_device(batch, self.device, non_blocking=True)


_NOTHING = nullcontext()

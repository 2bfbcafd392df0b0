"""From the fields of a Trainer to something that can run: checks, model, data, optimizers, schedules, trackers."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import DistributedType
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from trainer import bad_samples, non_finite, resume
from trainer.accelerator import parse_duration
from trainer.data import BatchStream, StreamLoader, plan_loader
from trainer.loss_levels import LossLevels
from trainer.optimization import Clipping, OptimizerUnit, match_by_name
from trainer.random_state import mix
from trainer.schedule import Lengths, lengths_in_epochs, total_updates, updates_per_epoch, warmup_updates
from trainer.state import Every
from trainer.tolerant import TolerantTracker
from trainer.trackers import JsonlTracker
from utils.errors import UserError

if TYPE_CHECKING:
    from trainer.trainer import Trainer

_COUNTS = (
    "epochs",
    "max_steps",
    "epoch_length",
    "log_every_n_steps",
    "val_every_n_steps",
    "gradient_accumulation_steps",
    "limit_train_batches",
    "limit_val_batches",
    "limit_test_batches",
    "limit_predict_batches",
    "overfit_batches",
    "hang_timeout",
)


def check_options(trainer: Trainer) -> None:
    """Refuse what can not work, and spell out `fast_dev_run`.

    Raises:
        UserError: an option has no meaning.
    """
    for name in _COUNTS:
        value = getattr(trainer, name)
        if value is not None and value <= 0:
            raise UserError(f"trainer.{name}: must be at least 1, got {value}")
    if trainer.lr_scheduler_interval not in ("step", "epoch"):
        raise UserError(f"trainer.lr_scheduler_interval: must be step or epoch, got {trainer.lr_scheduler_interval!r}")
    if trainer.on_non_finite not in non_finite.POLICIES:
        known = ", ".join(non_finite.POLICIES)
        raise UserError(f"trainer.on_non_finite: must be one of {known}, got {trainer.on_non_finite!r}")
    if trainer.max_loss_ratio is not None and trainer.max_loss_ratio <= 1:
        raise UserError(f"trainer.max_loss_ratio: must be above 1, or null, got {trainer.max_loss_ratio}")
    if trainer.on_bad_sample not in bad_samples.POLICIES:
        raise UserError(f"trainer.on_bad_sample: must be skip or raise, got {trainer.on_bad_sample!r}")
    if trainer.max_non_finite < 0:
        raise UserError(f"trainer.max_non_finite: must be 0 or more, got {trainer.max_non_finite}")
    if not 0 <= trainer.max_bad_fraction <= 1:
        raise UserError(f"trainer.max_bad_fraction: must be a share from 0 to 1, got {trainer.max_bad_fraction}")
    if trainer.split_on_oom and isinstance(trainer.optimizer, Mapping):
        raise UserError("trainer.split_on_oom: does not go with several optimizers, set it to false")
    if trainer.split_on_oom and trainer.sync_batchnorm:
        raise UserError("trainer.split_on_oom: does not go with trainer.sync_batchnorm, whose forward all ranks share")
    if trainer.fast_dev_run:
        n = int(trainer.fast_dev_run)
        trainer.epochs = trainer.log_every_n_steps = 1
        trainer.limit_train_batches = trainer.limit_val_batches = trainer.limit_test_batches = n
        trainer.limit_predict_batches = n
        trainer.num_sanity_val_steps, trainer.trackers, trainer.auto_resume = 0, (), False


def named(given: Mapping[str, Any] | Sequence[Any] | None) -> dict[str, Any]:
    """A mapping without its nulls; members of a sequence are named by their class."""
    if isinstance(given, Mapping):
        return {name: value for name, value in given.items() if value is not None}
    names: dict[str, Any] = {}
    for value in given or ():
        base = type(value).__name__
        names[base if base not in names else f"{base}_{len(names)}"] = value
    return names


def named_loaders(given: Any) -> dict[str | None, Any]:
    """Loaders by name; a single one has none."""
    if given is None:
        return {}
    return dict(given) if isinstance(given, Mapping) else {None: given}


def _loaders(trainer: Trainer) -> dict[str, Any]:
    """Those of training and validation, by their config keys."""
    validation = named_loaders(trainer.val_dataloader).items()
    return {"train_dataloader": trainer.train_dataloader} | {
        f"val_dataloader.{name}" if name else "val_dataloader": loader for name, loader in validation
    }


def set_up(trainer: Trainer) -> None:
    """All that `fit` needs, in the order in which one thing needs another."""
    for name in ("train_dataloader", "optimizer"):
        if getattr(trainer, name) is None:
            raise UserError(f"fit needs a {name}")
    torch.autograd.set_detect_anomaly(trainer.detect_anomaly)
    if trainer.accelerator.process_index:  # dropout must not be the same on every rank
        torch.manual_seed(mix(trainer.seed, trainer.accelerator.process_index) >> 1)
    _set_up_data(trainer)
    _set_up_model(trainer)
    optimizers = _make_optimizers(trainer)
    trainer._call("on_fit_start")
    _wrap(trainer, optimizers)
    _set_up_units(trainer, optimizers)
    _set_up_schedules(trainer)
    _set_up_trackers(trainer)
    trainer.loss_levels = LossLevels(trainer.max_loss_ratio, trainer.device, trainer.accelerator.num_processes)
    resume.resume(trainer)
    trainer.bad_samples.begin(_loaders(trainer), resumed=trainer._resumed_from is not None)
    trainer.guard = non_finite.FiniteGuard(trainer)
    limit = parse_duration(trainer.max_time)
    trainer._deadline = None if limit is None else time.monotonic() + limit


def prepare_evaluation(trainer: Trainer) -> None:
    """The model on its device, in the precision of the run, without a training around it."""
    if not trainer._on_device:
        trainer.unwrapped_model = trainer.model
        trainer.model = _prepared(trainer, trainer.model, evaluation_mode=True)
        vars(trainer.model).pop("_is_accelerate_prepared", None)  # else a fit behind it would not put it under DDP
        trainer._on_device = True


def _set_up_data(trainer: Trainer) -> None:
    accelerator = trainer.accelerator
    loader = plan_loader(
        trainer.train_dataloader,
        seed=trainer.seed,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        limit=trainer.overfit_batches or trainer.limit_train_batches,
        skip_bad=trainer.bad_samples.skips,
    )
    trainer.stream = BatchStream(
        loader, trainer.to_device, trainer.epoch_length, bool(trainer.overfit_batches), trainer.bad_samples.see
    )
    length = trainer.stream.epoch_length
    trainer.updates_per_epoch = (
        None if length is None else updates_per_epoch(length, trainer.gradient_accumulation_steps)
    )
    trainer.total_steps = total_updates(trainer.epochs, trainer.updates_per_epoch, trainer.max_steps)
    if trainer.total_steps is None and trainer.epochs is None and trainer.max_time is None:
        raise UserError("nothing ends this run: set epochs, max_steps or trainer.max_time")
    if isinstance(loader, StreamLoader) and length is None and trainer.max_steps is None and trainer.epochs is None:
        raise UserError("train_dataloader has no length: set trainer.epoch_length or max_steps")
    trainer._val_dataloaders = named_loaders(trainer.val_dataloader)
    if trainer.overfit_batches:
        trainer._val_dataloaders = {None: trainer.train_dataloader}
        trainer.limit_val_batches = trainer.overfit_batches
    every = trainer.val_every_n_steps, trainer.val_every_n_epochs
    trainer._val_every = Every(*every) if any(every) else Every(n_epochs=1)


def _set_up_model(trainer: Trainer) -> None:
    model = trainer.unwrapped_model = trainer.model
    if trainer.gradient_checkpointing:
        enable = getattr(model, "gradient_checkpointing_enable", None)
        if enable is None:
            raise UserError(f"trainer.gradient_checkpointing: {type(model).__name__} does not offer it")
        enable()
    if trainer.sync_batchnorm and trainer.device.type == "cuda":
        trainer.unwrapped_model = trainer.model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if trainer.compile:
        trainer.model.compile(**(trainer.compile if isinstance(trainer.compile, Mapping) else {}))


def _modules(trainer: Trainer) -> dict[str, nn.Module]:
    """What each optimizer trains: the model, or for named ones the submodule of that name."""
    model = trainer.unwrapped_model
    if not isinstance(trainer.optimizer, Mapping):
        return {"model": model}
    modules = {}
    for name in trainer.optimizer:
        module = getattr(model, name, None)
        if not isinstance(module, nn.Module):
            parts = ", ".join(child for child, _ in model.named_children())
            raise UserError(f"optimizer.{name}: the model has no submodule {name!r}, only {parts}")
        modules[name] = module
    return modules


def _make_optimizers(trainer: Trainer) -> dict[str, Any]:
    make = trainer.optimizer if isinstance(trainer.optimizer, Mapping) else {"model": trainer.optimizer}
    trainer._alternates = isinstance(trainer.optimizer, Mapping)
    optimizers = {}
    for name, module in _modules(trainer).items():
        given = list(trainer.parameters_to_optimize(module))
        if not given:
            raise UserError(f"optimizer: {name} has no parameter to train")
        optimizers[name] = make[name](given)
    return optimizers


def _wrap(trainer: Trainer, optimizers: dict[str, Any]) -> None:
    """Put the model on its device and make it distributed."""
    if not trainer.is_sharded:
        wrap_model(trainer)
        return
    if trainer._alternates:
        raise UserError("several optimizers do not go with FSDP: launch with DDP (configs/accelerate/8gpus.yaml)")
    if trainer.split_on_oom:
        raise UserError("trainer.split_on_oom: does not go with FSDP, whose forward all ranks must repeat or none")
    # Sharding makes other parameters of the model's: the optimizer must be given those.
    trainer.model, optimizers["model"] = trainer.accelerator.prepare(trainer.model, optimizers["model"])
    trainer.unwrapped_model = trainer.accelerator.unwrap_model(trainer.model)
    trainer._on_device = True


def wrap_model(trainer: Trainer) -> None:
    """Put the model on its device, under DDP where there are several processes; again where what trains has changed."""
    model = trainer.unwrapped_model
    # Each part is called by itself, or as often as memory asks for: each optimizer averages its gradients.
    if trainer._alternates or (trainer.split_on_oom and not trainer.is_alone):
        trainer.model = model.to(trainer.device)
        for module in _modules(trainer).values():
            _prepared(trainer, module, evaluation_mode=True)
        if not trainer.is_alone:
            for tensor in (*model.parameters(), *model.buffers()):
                torch.distributed.broadcast(tensor.detach(), src=0)
    else:
        trainer.model = _prepared(trainer, model, evaluation_mode=False)
    trainer._is_ddp = isinstance(trainer.model, DistributedDataParallel)
    trainer._on_device = True


def _prepared(trainer: Trainer, model: nn.Module, evaluation_mode: bool) -> nn.Module:
    accelerator = trainer.accelerator
    if accelerator.distributed_type == DistributedType.NO and accelerator.mixed_precision == "no":
        return model.to(trainer.device)  # all there is to do, without the seconds that `prepare_model` spends importing
    return accelerator.prepare_model(model, evaluation_mode=evaluation_mode)


def check_unused_parameters(trainer: Trainer) -> None:
    """After the first backward under DDP: say which parameters got no gradient, before DDP fails without their names.

    Raises:
        UserError: some did not.
    """
    trainer._checked_unused = True
    named_parameters = trainer.unwrapped_model.named_parameters()
    unused = [name for name, p in named_parameters if p.requires_grad and p.grad is None]
    if unused:
        more = f" and {len(unused) - 5} more" if len(unused) > 5 else ""
        raise UserError(
            f"these parameters take no part in the loss: {', '.join(unused[:5])}{more}. Use them, freeze them "
            "(callbacks.freeze), or set trainer.find_unused_parameters=true"
        )


def _set_up_units(trainer: Trainer, optimizers: Mapping[str, Any]) -> None:
    clipping = Clipping(trainer.max_grad_norm, trainer.max_grad_value)
    for name, optimizer in optimizers.items():
        trainer.units[name] = OptimizerUnit(
            name, optimizer, trainer.accelerator, clipping, trainer.gradient_accumulation_steps,
            one_of_several=trainer._alternates, in_parts=trainer.split_on_oom,
        )  # fmt: skip


def _set_up_schedules(trainer: Trainer) -> None:
    warmup = warmup_updates(trainer.warmup_steps, trainer.warmup_epochs, trainer.updates_per_epoch)
    lengths = Lengths(trainer.total_steps, warmup, trainer.updates_per_epoch, trainer.epochs)
    if trainer.lr_scheduler_interval == "epoch":
        lengths = lengths_in_epochs(lengths, trainer.warmup_epochs)
    for name, make in match_by_name(trainer.lr_scheduler, list(trainer.units), "lr_scheduler").items():
        trainer.units[name].make_scheduler(make, lengths)


def _set_up_trackers(trainer: Trainer) -> None:
    if not trainer.is_main_process or trainer.exp_dir is None or trainer.fast_dev_run:
        return
    exp_dir = trainer.exp_dir
    exp_dir.mkdir(parents=True, exist_ok=True)
    others = [TolerantTracker(make, exp_dir, name) for name, make in named(trainer.trackers).items()]
    trainer._trackers = [JsonlTracker(exp_dir), *others]
    if trainer.hyperparameters is not None:
        for tracker in trainer._trackers:
            tracker.log_hyperparameters(trainer.hyperparameters)

"""What each of two processes runs: `torchrun --nproc_per_node 2 -m tests.trainer.two_processes TASKS.json OUT.json`.

All tasks share one launch, which costs more than they do. With one process the same functions are called in place.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import accelerate
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from tests.trainer.tiny import SGD, VectorTrainer, linear, loader
from tests.trainer.tiny_gan import gan
from trainer import Callback, StepOutput, interruption
from trainer import checkpoint as checkpoints
from trainer.callbacks import ExponentialMovingAverage, Freeze, ModelCheckpoint
from trainer.checkpoint import latest
from trainer.interruption import Interrupted
from utils.errors import UserError
from utils.launch import end_together


class Ragged(Dataset):
    """Sequences of 1 to 9 frames: item i has 1 + i % 9 of them."""

    deterministic = True

    def __init__(self, num_items: int) -> None:
        self.num_items = num_items

    def __len__(self) -> int:
        return self.num_items

    def __getitem__(self, index: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(index)
        return torch.randn(1 + index % 9, 4, generator=generator, dtype=torch.float64)


class FrameTrainer(VectorTrainer):
    """A loss summed over frames, of which batches have different numbers."""

    def training_step(self, batch: Any, batch_idx: int) -> StepOutput:
        frames = torch.cat(batch)
        error = self.model(frames) - frames.sum(1, keepdim=True).sin()
        return StepOutput(error.square().sum(), len(frames))


class Remember(Callback):
    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_before_optimizer_step(self, trainer, optimizer):
        self.rates.append(optimizer.param_groups[0]["lr"])


def linear_decay(optimizer, num_training_steps):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / num_training_steps)


def topology(world: int, accumulation: int, num_items: int, validated: bool = False) -> dict[str, Any]:
    """8 clips to an update, on `world` processes; `validated` before the fit too."""
    data = DataLoader(Ragged(num_items), batch_size=8 // (world * accumulation), shuffle=True, collate_fn=list)
    remember, model = Remember(), linear()
    trainer = FrameTrainer(model, data, SGD, linear_decay, callbacks=[remember], epochs=3, max_grad_norm=1.0, seed=5,
                           gradient_accumulation_steps=accumulation)  # fmt: skip
    if validated:
        trainer.validate(DataLoader(Ragged(num_items), batch_size=4, collate_fn=list))
    trainer.fit()
    return {"weight": model.weight.flatten().tolist(), "rates": remember.rates, "updates": trainer.global_step,
            "loss": trainer.metrics["train/loss"]}  # fmt: skip


def validation(num_items: int) -> dict[str, Any]:
    """Every sample counted once; predictions in order."""
    trainer = VectorTrainer(linear(), val_dataloader=loader(num_items, 4))
    return {**trainer.validate(), "predicted": trainer.predict(loader(num_items, 4))}


def schedule(items: int, batch: int, accumulation: int, drop_last: bool, epoch_length: int | None) -> dict[str, Any]:
    remember = Remember()
    trainer = VectorTrainer(
        linear(), loader(items, batch, drop_last=drop_last), SGD, linear_decay, epochs=2, callbacks=[remember],
        gradient_accumulation_steps=accumulation, epoch_length=epoch_length,
    )  # fmt: skip
    trainer.fit()
    return {"rates": remember.rates, "last": trainer.units["model"].learning_rates[0]}


def adversarial(world: int) -> dict[str, Any]:
    model, trainer = gan(batch_size=16 // world, epochs=3)
    trainer.fit()
    return {"weights": torch.cat([p.detach().flatten() for p in model.parameters()]).tolist()}


def stop_and_resume(directory: str, max_steps: int, asynchronous: bool = False) -> dict[str, Any]:
    model = nn.Sequential(linear(), nn.Dropout(0.2))
    trainer = VectorTrainer(
        model, loader(32, 4, noise=0.3, shuffle=True), partial(torch.optim.AdamW, lr=0.01), None, None, loader(8),
        callbacks=[ModelCheckpoint(every_n_steps=1, asynchronous=asynchronous)], exp_dir=Path(directory),
        auto_resume=True, max_steps=max_steps, epochs=3, seed=2,
    )  # fmt: skip
    trainer.fit()
    return {"weight": model[0].weight.flatten().tolist(), "updates": trainer.global_step}


class Unplug(Callback):
    def __init__(self, at: int) -> None:
        self.at = at

    def on_train_batch_start(self, trainer, batch, batch_idx):
        if trainer.global_step == self.at:
            raise KeyboardInterrupt


def elastic(directory: str, world: int, unplug_at: int) -> dict[str, Any]:
    """8 samples to an update on any number of processes; augmented, without dropout."""
    model = linear()
    trainer = VectorTrainer(
        model, loader(64, 4, noise=0.3, shuffle=True), partial(torch.optim.AdamW, lr=0.01), None, None, loader(8),
        callbacks=[ModelCheckpoint(every_n_steps=1), Unplug(unplug_at)], exp_dir=Path(directory), auto_resume=True,
        epochs=3, seed=2, max_steps=20, gradient_accumulation_steps=2 // world, log_every_n_steps=4,
    )  # fmt: skip
    with contextlib.suppress(KeyboardInterrupt):
        trainer.fit()
    lines = [json.loads(line) for line in (Path(directory) / "metrics.jsonl").read_text().splitlines()]
    losses = [(line["step"], line["train/loss"]) for line in lines if "train/loss" in line]
    return {"weight": model.weight.flatten().tolist(), "updates": trainer.global_step, "losses": losses}


def disk_full_on_one_rank(directory: str, asynchronous: bool) -> dict[str, Any]:
    """Rank 1 can not write its file at updates 2 and 3."""
    write = checkpoints.write_rank

    def full(own: Any, partial_folder: Path, rank: int) -> None:
        if rank == 1 and partial_folder.name in (".step_00000002.partial", ".step_00000003.partial"):
            raise OSError(28, "No space left on device")
        write(own, partial_folder, rank)

    checkpoint = ModelCheckpoint(every_n_steps=1, keep_last=9, asynchronous=asynchronous)
    trainer = VectorTrainer(linear(), loader(), SGD, exp_dir=Path(directory), callbacks=[checkpoint], max_steps=4)
    checkpoints.write_rank = full
    try:
        trainer.fit()
    finally:
        checkpoints.write_rank = write
    return {
        "folders": sorted(path.name for path in trainer.checkpoint_dir.iterdir()),
        "last": accelerate.utils.gather_object([checkpoint.state_dict()["last"]]),
    }


def stop_by_one_rank() -> dict[str, Any]:
    class OneWishes(Callback):
        def on_train_batch_end(self, trainer, output, batch, batch_idx):
            trainer.should_stop |= trainer.accelerator.process_index == 1 and trainer.global_step == 3

    trainer = VectorTrainer(linear(), loader(64, 2), SGD, epochs=9, callbacks=[OneWishes()], log_every_n_steps=5)
    trainer.fit()
    return {"updates": trainer.global_step}


def signal_to_one_rank(directory: str) -> dict[str, Any]:
    """At update 3, far from any log."""

    class Hurt(Callback):
        def on_train_batch_start(self, trainer, batch, batch_idx):
            if trainer.accelerator.process_index == 1 and trainer.global_step == 3:
                os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0.01)  # some updates to each of the seconds between agreements

    trainer = VectorTrainer(
        linear(), loader(4096, 1), SGD, epochs=9, callbacks=[Hurt()], exp_dir=Path(directory), log_every_n_steps=10**6
    )
    try:
        trainer.fit()
    except Interrupted as stopped:
        saved = latest(trainer.checkpoint_dir)
        return {"code": stopped.code, "updates": trainer.global_step, "saved": saved and saved.name}
    return {}


def non_finite_on_one_rank(directory: str, policy: str) -> dict[str, Any]:
    """Item 20 is not a number; rank 1 gets it in batch 2 of 4."""
    data = loader(32, 4)
    data.dataset.x[20] = float("nan")  # type: ignore[attr-defined]
    model = linear()
    trainer = VectorTrainer(
        model, data, SGD, epochs=1, exp_dir=Path(directory), on_non_finite=policy, log_every_n_steps=4,
        callbacks=[ModelCheckpoint(every_n_steps=2)],
    )  # fmt: skip
    error = ""
    try:
        trainer.fit()
    except UserError as raised:
        error = str(raised)
    mine = torch.tensor([float(trainer.global_step), float(trainer.state.num_non_finite)])
    return {
        "same": bool((trainer.accelerator.gather(mine).view(2, -1).diff(dim=0) == 0).all()),
        "updates": trainer.global_step, "count": trainer.state.num_non_finite, "error": error,
        "finite": bool(model.weight.isfinite().all()),
        "files": sorted(path.name for path in Path(directory, "bad_batches").glob("*.pt")),
    }  # fmt: skip


def spike_on_one_rank(directory: str, policy: str) -> dict[str, Any]:
    """Items 140 to 143 have targets far off; rank 1 gets them, in update 18 of 20."""
    data = loader(160, 4)
    data.dataset.y[140:144] *= 1000  # type: ignore[attr-defined]
    model = linear()
    trainer = VectorTrainer(
        model, data, partial(torch.optim.SGD, lr=1e-6), epochs=1, exp_dir=Path(directory), on_non_finite=policy,
        log_every_n_steps=10, max_loss_ratio=10.0, callbacks=[ModelCheckpoint(every_n_steps=17)],
    )  # fmt: skip
    error = ""
    try:
        trainer.fit()
    except UserError as raised:
        error = str(raised)
    mine = torch.tensor([float(trainer.global_step), float(trainer.state.num_non_finite), *model.weight[0].tolist()])
    return {
        "same": bool((trainer.accelerator.gather(mine).view(2, -1).diff(dim=0) == 0).all()), "error": error,
        "updates": trainer.global_step, "count": trainer.state.num_non_finite,
        "files": sorted(path.name for path in Path(directory, "bad_batches").glob("*.pt")),
    }  # fmt: skip


def splits_on_one_rank(accumulation: int, most: int) -> dict[str, Any]:
    """Rank 1 has memory for `most` items; the other for all, and is never asked to repeat anything."""

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.layer = nn.BatchNorm1d(4, track_running_stats=True).double().eval(), linear()
            self.sizes: list[int] = []

        def forward(self, x):
            self.sizes.append(len(x))
            if len(x) > most and accelerate.PartialState().process_index == 1:
                raise torch.OutOfMemoryError("out of memory")
            return self.layer(self.norm(x))

    model = Small()
    model.norm.train = lambda mode=True: model.norm  # type: ignore[method-assign]  # its statistics would see the parts
    trainer = VectorTrainer(
        model, loader(42, 4, noise=0.3), SGD, epochs=2, max_grad_norm=1.0, split_on_oom=most < 4,
        gradient_accumulation_steps=accumulation,
    )  # fmt: skip
    trainer.fit()
    sizes = accelerate.utils.gather_object([max(model.sizes[-3:])])
    return {"weight": model.layer.weight.flatten().tolist(), "loss": trainer.metrics["train/loss"], "sizes": sizes,
            "updates": trainer.global_step}  # fmt: skip


def validation_stopped_by_one_rank(directory: str, hurt: bool) -> dict[str, Any]:
    """SIGTERM to rank 1 in the second of 4 batches of the validation of update 5."""

    class Hurt(Callback):
        seen = 0

        def on_validation_batch_end(self, trainer, output, batch, batch_idx):
            self.seen += 1
            if hurt and trainer.accelerator.process_index == 1 and (trainer.global_step, batch_idx) == (5, 1):
                os.kill(os.getpid(), signal.SIGTERM)

    model, callback = nn.Sequential(linear(), nn.Dropout(0.2)), Hurt()
    trainer = VectorTrainer(
        model, loader(64, 4, noise=0.3, shuffle=True), partial(torch.optim.AdamW, lr=0.01), None, None, loader(32, 4),
        callbacks={"ema": ExponentialMovingAverage(0.9), "save": ModelCheckpoint(every_n_steps=3), "hurt": callback},
        exp_dir=Path(directory), epochs=1, val_every_n_steps=5, auto_resume=True, log_every_n_steps=2,
    )  # fmt: skip
    seconds, interruption._SECONDS_BETWEEN_AGREEMENTS = interruption._SECONDS_BETWEEN_AGREEMENTS, 0.0
    code = 0
    try:
        trainer.fit()
    except Interrupted as stopped:
        code = int(str(stopped.code))
    finally:
        interruption._SECONDS_BETWEEN_AGREEMENTS = seconds
    losses = [line for line in Path(directory, "metrics.jsonl").read_text().splitlines() if "loss" in line]
    return {
        "code": code, "updates": trainer.global_step, "weight": model[0].weight.flatten().tolist(),
        "batches": accelerate.utils.gather_object([callback.seen]),
        "metrics": [{k: v for k, v in json.loads(line).items() if k != "time"} for line in losses],
    }  # fmt: skip


def freeze_and_thaw() -> dict[str, Any]:
    model = nn.Sequential(linear(), nn.Linear(1, 1).double())
    before = model[0].weight.detach().clone()
    at_thaw: list[bool] = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, output, batch, batch_idx):
            if trainer.global_step == 3:
                at_thaw.append(torch.equal(model[0].weight, before))

    trainer = VectorTrainer(model, loader(), SGD, epochs=2, callbacks=[Watch(), Freeze(["0"], until_step=3)])
    trainer.fit()
    return {"frozen_until_then": at_thaw, "trained_after": not torch.equal(model[0].weight, before)}


def unused() -> dict[str, Any]:
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.spare = linear(), linear()

        def forward(self, x):
            return self.used(x)

    try:
        VectorTrainer(Two(), loader(), SGD, epochs=1).fit()
    except UserError as error:
        return {"error": str(error)}
    return {}


def main() -> None:
    tasks = json.loads(Path(sys.argv[1]).read_text())
    results = {key: globals()[task](*arguments) for key, (task, arguments) in tasks.items()}
    state = accelerate.PartialState()
    if state.is_main_process:
        Path(sys.argv[2]).write_text(json.dumps(results | {"num_processes": state.num_processes}))
    end_together()


if __name__ == "__main__":
    main()

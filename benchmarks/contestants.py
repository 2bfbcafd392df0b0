"""The same training, by hand and by frameworks: AdamW, clipping at 1, a LambdaLR, a bar, TensorBoard every 50 steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

LOG_EVERY, CLIP, BATCH = 50, 1.0, 8


class Clock:
    """Takes the time at forward calls: between two of them lies one whole step, in any framework."""

    def __init__(self, warmup: int) -> None:
        self.warmup, self.calls = warmup, 0
        self.start = self.end = (0.0, 0.0)

    def tick(self) -> None:
        now = time.perf_counter(), time.process_time()
        if self.calls == self.warmup:
            self.start = now
        self.end = now
        self.calls += 1

    def per_step(self) -> tuple[float, float]:
        """Wall and CPU seconds per step behind the warm-up."""
        steps = self.calls - 1 - self.warmup
        return (self.end[0] - self.start[0]) / steps, (self.end[1] - self.start[1]) / steps


class Net(nn.Module):
    """`width` decides whether the step or what surrounds it is measured."""

    def __init__(self, width: int, depth: int, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        layers: list[nn.Module] = [nn.Linear(16, width), nn.ReLU()]
        for _ in range(depth):
            layers += [nn.Linear(width, width), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(width, 1))

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        self.clock.tick()
        return {"loss": (self.layers(x) - y).square().mean()}


class Items(Dataset):
    deterministic = True  # draws nothing at random

    def __init__(self, num_items: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(num_items, 16, generator=generator)
        self.y = self.x.sum(1, keepdim=True)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": self.x[index], "y": self.y[index]}


class RandomItems(Items):
    """The same for a loader that must assume that items are drawn at random."""

    deterministic = False


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-3)


def decay(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 / (1.0 + 1e-4 * step))


def torch_loop(model: nn.Module, data: Dataset, steps: int, folder: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter
    from tqdm import tqdm

    optimizer = adamw(model.parameters())
    schedule, writer, loss_sum = decay(optimizer), SummaryWriter(str(folder)), 0.0
    model.train()
    for step, batch in enumerate(tqdm(DataLoader(data, BATCH), total=steps), start=1):
        loss = model(**batch)["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        loss_sum = loss_sum + loss.detach()
        if step % LOG_EVERY == 0:
            writer.add_scalar("train/loss", float(loss_sum) / LOG_EVERY, step)
            loss_sum = 0.0
    writer.close()


def accelerate_loop(model: nn.Module, data: Dataset, steps: int, folder: Path) -> None:
    from accelerate import Accelerator
    from torch.utils.tensorboard import SummaryWriter
    from tqdm import tqdm

    accelerator = Accelerator(cpu=True)
    optimizer = adamw(model.parameters())
    schedule, writer, loss_sum = decay(optimizer), SummaryWriter(str(folder)), 0.0
    model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, DataLoader(data, BATCH), schedule)
    model.train()
    for step, batch in enumerate(tqdm(loader, total=steps), start=1):
        with accelerator.accumulate(model):
            loss = model(**batch)["loss"]
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        loss_sum = loss_sum + loss.detach()
        if step % LOG_EVERY == 0:
            writer.add_scalar("train/loss", float(loss_sum) / LOG_EVERY, step)
            loss_sum = 0.0
    writer.close()


def ostinato(model: nn.Module, data: Dataset, steps: int, folder: Path) -> None:
    from trainer import Trainer
    from trainer.callbacks import LearningRateMonitor, ModelCheckpoint, ProgressBar
    from trainer.trackers import TensorBoardTracker

    class Ours(Trainer):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self.model(**batch)["loss"]

    Ours(
        model, DataLoader(data, BATCH), adamw, decay,
        callbacks=[LearningRateMonitor(), ModelCheckpoint(), ProgressBar()],
        trackers=[TensorBoardTracker], exp_dir=folder, max_steps=steps, max_grad_norm=CLIP, log_every_n_steps=LOG_EVERY,
    ).fit()  # fmt: skip


def lightning(model: nn.Module, data: Dataset, steps: int, folder: Path) -> None:
    import lightning as L
    from lightning.pytorch.loggers import TensorBoardLogger

    class Module(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = model

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = self.net(**batch)["loss"]
            self.log("train/loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            optimizer = adamw(self.parameters())
            return [optimizer], [{"scheduler": decay(optimizer), "interval": "step"}]

    L.Trainer(
        accelerator="cpu", max_steps=steps, max_epochs=1, gradient_clip_val=CLIP, log_every_n_steps=LOG_EVERY,
        logger=TensorBoardLogger(str(folder)), default_root_dir=str(folder), enable_model_summary=False,
    ).fit(Module(), DataLoader(data, BATCH))  # fmt: skip


def hf_trainer(model: nn.Module, data: Dataset, steps: int, folder: Path) -> None:
    import os

    from transformers import Trainer as HfTrainer
    from transformers import TrainingArguments

    os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder)
    optimizer = adamw(model.parameters())
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=BATCH, logging_steps=LOG_EVERY,
        max_grad_norm=CLIP, report_to=["tensorboard"], use_cpu=True, save_strategy="no", dataloader_num_workers=0,
        disable_tqdm=False, remove_unused_columns=False, train_sampling_strategy="sequential",
    )  # fmt: skip
    HfTrainer(model, arguments, train_dataset=data, optimizers=(optimizer, decay(optimizer))).train()


CONTESTANTS: dict[str, Callable[..., None]] = {
    "torch loop": torch_loop,
    "ostinato": ostinato,
    "ostinato, keyed items": ostinato,
    "accelerate loop": accelerate_loop,
    "lightning": lightning,
    "hf trainer": hf_trainer,
}
ITEMS: dict[str, type[Items]] = {"ostinato, keyed items": RandomItems}
MODELS = {"tiny": partial(Net, 32, 2), "medium": partial(Net, 1400, 4)}

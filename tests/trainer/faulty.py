"""A small run with everything on, to be hurt from outside or inside: `python -m tests.trainer.faulty OPTIONS_AS_JSON`.

Augmentation, dropout, EMA, schedule, early stopping, best-k, validation; 24 updates in 3 epochs where nothing happens.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, get_worker_info

from tests.trainer.tiny import Vectors, VectorTrainer, linear, loader
from trainer import Callback
from trainer.callbacks import EarlyStopping, ExponentialMovingAverage, ModelCheckpoint
from utils.errors import UserError
from utils.launch import end_together
from utils.logging import set_up_logging


class DyingVectors(Vectors):
    """Kills the worker that reads one of its items, once."""

    def __init__(self, flag: Path) -> None:
        super().__init__(30, noise=0.3)
        self.flag = flag

    def __getitem__(self, index):
        if index == 17 and get_worker_info() is not None and not self.flag.exists():
            self.flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


class Fault(Callback):
    """What befalls `rank` (None: every rank) at the start of update `at`; not again after a restart."""

    def __init__(self, kind: str, at: int, rank: int | None = None) -> None:
        self.kind, self.at, self.rank, self.is_done = kind, at, rank, False

    def on_train_batch_start(self, trainer, batch, batch_idx):
        if self.is_done or trainer.global_step != self.at or self.rank not in (None, trainer.accelerator.process_index):
            return
        if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
            return
        self.is_done = True
        if self.kind == "sleep":
            time.sleep(600)
        elif self.kind == "raise":
            raise RuntimeError("the first error")
        else:
            os.kill(os.getpid(), signal.Signals[self.kind])


class Slow(Callback):
    """Leaves time for a signal from outside."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_train_batch_start(self, trainer, batch, batch_idx):
        time.sleep(self.seconds)


def make(exp_dir: str | Path, *, workers: int = 0, accumulation: int = 1, every: int = 2, faults: Any = (),
         seconds_per_batch: float = 0.0, dying_worker: bool = False, checkpoint: bool = True,
         **options: Any) -> VectorTrainer:  # fmt: skip
    torch.manual_seed(0)
    model = nn.Sequential(linear(), nn.Dropout(0.2))
    callbacks = {
        "slow": Slow(seconds_per_batch),
        "ema": ExponentialMovingAverage(0.9),
        "stop": EarlyStopping(patience=50),
        "checkpoint": ModelCheckpoint(every, keep_last=2, monitor="val/loss", keep_best=2) if checkpoint else None,
    } | {f"fault_{i}": Fault(*fault) for i, fault in enumerate(faults)}
    exp_dir = Path(exp_dir)
    data = Vectors(30, noise=0.3) if not dying_worker else DyingVectors(exp_dir.with_suffix(".flag"))
    defaults = {"epochs": 3, "log_every_n_steps": 3, "val_every_n_steps": 5, "max_grad_norm": 1.0, "seed": 11}
    return VectorTrainer(
        model, DataLoader(data, batch_size=4, shuffle=True, num_workers=workers), partial(torch.optim.AdamW, lr=0.01),
        partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.05), None, loader(8, noise=0.1), callbacks=callbacks,
        exp_dir=exp_dir, gradient_accumulation_steps=accumulation, **defaults | options,
    )  # fmt: skip


def main() -> None:
    torch.set_num_threads(1)
    set_up_logging()
    try:
        make(**json.loads(sys.argv[1])).fit()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None
    end_together()


if __name__ == "__main__":
    main()

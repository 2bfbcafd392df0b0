"""Stop, resume, and end with the same bits as the run that was never stopped."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.trainer.tiny import SGD, VectorTrainer, linear, loader
from trainer import Callback
from trainer.callbacks import EarlyStopping, ExponentialMovingAverage, ModelCheckpoint
from trainer.checkpoint import find, latest, read_weights, step_folders
from utils.errors import UserError


class Unplugged(RuntimeError):
    pass


class PullThePlug(Callback):
    """Ends the process's run right after an update, as a kill would: nothing is saved by it."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_train_batch_start(self, trainer, batch, batch_idx):
        if trainer.global_step == self.at:
            raise Unplugged


def make(
    exp_dir: Path, *more: Any, workers: int = 0, accumulation: int = 1, asynchronous: bool = False, **options: Any
) -> VectorTrainer:
    torch.manual_seed(0)
    model = nn.Sequential(linear(), nn.Dropout(0.2))
    callbacks = {
        "ema": ExponentialMovingAverage(0.9),
        "stop": EarlyStopping(patience=50),
        "checkpoint": ModelCheckpoint(
            every_n_steps=2, keep_last=2, monitor="val/loss", keep_best=2, asynchronous=asynchronous
        ),
    } | {f"extra_{i}": callback for i, callback in enumerate(more)}
    schedule = partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.05)
    return VectorTrainer(
        model, loader(30, 4, noise=0.3, shuffle=True, num_workers=workers), partial(torch.optim.AdamW, lr=0.01),
        schedule, None, loader(8, noise=0.1), callbacks=callbacks, exp_dir=exp_dir, seed=11, epochs=3,
        log_every_n_steps=3, val_every_n_steps=5, gradient_accumulation_steps=accumulation, max_grad_norm=1.0,
        **options,
    )  # fmt: skip


def outcome(exp_dir: Path) -> tuple[dict, dict, list]:
    folder = latest(exp_dir / "checkpoints")
    assert folder is not None
    metrics = [json.loads(line) for line in (exp_dir / "metrics.jsonl").read_text().splitlines()]
    for line in metrics:
        line.pop("time")
    return read_weights(folder / "model.safetensors"), read_weights(folder / "ema.safetensors"), metrics


def assert_same(one: Path, other: Path) -> None:
    for a, b in zip(outcome(one)[:2], outcome(other)[:2]):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert outcome(one)[2] == outcome(other)[2]


@pytest.mark.parametrize(
    ("workers", "accumulation", "kill_at"), [(0, 1, 3), (0, 1, 8), (0, 1, 13), (0, 4, 3), (0, 4, 2), (2, 1, 11)]
)
def test_a_resumed_run_ends_bit_identical(tmp_path, workers, accumulation, kill_at):
    """Augmentation, dropout, EMA, schedule, best-k, validation: all of it, mid-epoch and at an epoch's edge."""
    settings = {"workers": workers, "accumulation": accumulation}
    make(tmp_path / "whole", **settings).fit()
    with pytest.raises(Unplugged):
        make(tmp_path / "killed", PullThePlug(kill_at), **settings).fit()
    make(tmp_path / "killed", auto_resume=True, **settings).fit()
    assert_same(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.parametrize("kind", ["epoch", "metric"])
def test_schedules_by_epoch_and_by_metric_resume_bit_identical(tmp_path, kind):
    def scheduled(exp_dir, *more, **options):
        trainer = make(exp_dir, *more, lr_scheduler_interval="epoch" if kind == "epoch" else "step", **options)
        schedules = torch.optim.lr_scheduler
        by_metric = partial(schedules.ReduceLROnPlateau, patience=0, factor=0.5, threshold=0.5)
        trainer.lr_scheduler = partial(schedules.StepLR, step_size=1, gamma=0.5) if kind == "epoch" else by_metric
        return trainer

    whole = scheduled(tmp_path / "whole")
    whole.fit()
    assert whole.units["model"].learning_rates[0] < 0.01
    for kill_at in (8, 13):
        with pytest.raises(Unplugged):
            scheduled(tmp_path / "killed", PullThePlug(kill_at), auto_resume=True).fit()
    scheduled(tmp_path / "killed", auto_resume=True).fit()
    assert_same(tmp_path / "whole", tmp_path / "killed")


def test_a_run_killed_twice_and_resumed_with_other_workers_ends_the_same(tmp_path):
    make(tmp_path / "whole").fit()
    for kill_at, workers in ((5, 0), (14, 2)):
        with pytest.raises(Unplugged):
            make(tmp_path / "killed", PullThePlug(kill_at), workers=workers, auto_resume=True).fit()
    make(tmp_path / "killed", auto_resume=True).fit()
    assert_same(tmp_path / "whole", tmp_path / "killed")


def test_a_finished_run_resumed_does_nothing_more(tmp_path):
    make(tmp_path).fit()
    before = (tmp_path / "metrics.jsonl").read_text()
    trainer = make(tmp_path, resume_from_checkpoint="latest")
    trainer.fit()
    assert trainer.global_step == 24
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_families_of_checkpoints_do_not_eat_each_other(tmp_path):
    trainer = make(tmp_path)
    trainer.fit()
    steps = {step for step, _ in step_folders(tmp_path / "checkpoints")}
    checkpoint = trainer.callbacks["checkpoint"]
    best = {step for _, step in checkpoint.state_dict()["best"]}
    assert len(best) == 2
    assert steps == {22, 24} | best
    assert (tmp_path / "checkpoints/last").resolve().name == "step_00000024"
    assert (tmp_path / "checkpoints/best").resolve().name == f"step_{checkpoint.best.step:08d}"


def test_permanent_checkpoints_stay(tmp_path):
    callbacks = {"checkpoint": ModelCheckpoint(every_n_steps=1, every_n_epochs=None, permanent_every_n_steps=3)}
    VectorTrainer(linear(), loader(), SGD, callbacks=callbacks, exp_dir=tmp_path, max_steps=8).fit()
    assert [step for step, _ in step_folders(tmp_path / "checkpoints")] == [3, 6, 8]


def test_a_broken_checkpoint_is_passed_over_and_refused_by_name(tmp_path):
    make(tmp_path).fit()
    newest = latest(tmp_path / "checkpoints")
    weights = newest / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    with pytest.raises(UserError, match=r"is not whole: model.safetensors has changed since it was written"):
        find("last", tmp_path / "checkpoints")
    weights.write_bytes(bytes(data[:-1]))
    assert latest(tmp_path / "checkpoints") != newest
    (newest / "manifest.json").unlink()
    assert latest(tmp_path / "checkpoints") != newest


def test_weights_of_another_model_are_refused(tmp_path):
    VectorTrainer(linear(), loader(), SGD, callbacks=[ModelCheckpoint()], exp_dir=tmp_path, max_steps=2).fit()
    other = VectorTrainer(nn.Linear(5, 1), loader(), SGD, exp_dir=tmp_path, max_steps=2, auto_resume=True)
    with pytest.raises(UserError, match=r"does not fit the model: weight is \[1, 4\], the model's \[1, 5\]"):
        other.fit()


def test_latest_goes_by_number(tmp_path):
    trainer = VectorTrainer(linear(), loader(40), SGD, exp_dir=tmp_path, max_steps=10,
                            callbacks=[ModelCheckpoint(every_n_steps=1, keep_last=3)])  # fmt: skip
    trainer.fit()
    assert latest(tmp_path / "checkpoints").name == "step_00000010"

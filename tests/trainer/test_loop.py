"""The loop: how many updates, when what is done, when it ends."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from tests.trainer.tiny import SGD, MeanTrainer, VectorTrainer, linear, loader
from trainer import Callback, Trainer
from utils.errors import UserError


class UpdatesPerEpoch(Callback):
    def __init__(self) -> None:
        self.at_end: list[int] = []
        self.rates: list[float] = []

    def on_train_epoch_end(self, trainer: Trainer) -> None:
        self.at_end.append(trainer.global_step)

    def on_update_end(self, trainer: Trainer) -> None:
        self.rates += trainer.units["model"].learning_rates

    @property
    def counts(self) -> list[int]:
        return [b - a for a, b in zip([0, *self.at_end], self.at_end)]


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield {"x": torch.ones(4).double(), "y": torch.ones(1).double()}


def linear_to_zero(optimizer, num_training_steps: int):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / num_training_steps)


@pytest.mark.parametrize("source", ["finite", "endless"])
def test_accumulation_4_with_validation_and_epoch_length_12_makes_3_updates_in_each_of_6_epochs(source):
    data = loader(num_items=40, shuffle=True) if source == "finite" else DataLoader(Endless(), batch_size=4)
    updates = UpdatesPerEpoch()
    VectorTrainer(
        linear(), data, SGD, linear_to_zero, None, loader(12), callbacks=[updates],
        epochs=6, epoch_length=12, gradient_accumulation_steps=4,
    ).fit()  # fmt: skip
    assert updates.counts == [3] * 6
    assert [rate > 0 for rate in updates.rates] == [True] * 17 + [False]


def test_a_last_partial_window_is_the_mean_over_what_it_holds():
    """3 batches, accumulation 2: the second update holds one batch and must not be halved."""

    class Ramp(Trainer):
        def training_step(self, batch, batch_idx):
            return self.model.weight.sum()

    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    Ramp(model, loader(12), partial(torch.optim.SGD, lr=1.0), epochs=1, gradient_accumulation_steps=2).fit()
    assert model.weight.item() == -2.0


@pytest.mark.parametrize("cls", [VectorTrainer, MeanTrainer])
def test_accumulated_micro_batches_equal_one_large_batch(cls):
    weights = []
    for batch_size, accumulation in ((8, 1), (4, 2), (2, 4)):
        model = linear()
        cls(model, loader(32, batch_size), SGD, epochs=3, gradient_accumulation_steps=accumulation).fit()
        weights.append(model.weight.detach().clone())
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=1e-12)
    torch.testing.assert_close(weights[0], weights[2], rtol=0, atol=1e-12)


def test_max_steps_ends_inside_an_epoch_and_validates_there(tmp_path):
    trainer = VectorTrainer(linear(), loader(), SGD, None, None, loader(), max_steps=11, exp_dir=tmp_path)
    trainer.fit()
    assert (trainer.global_step, trainer.epoch) == (11, 1)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "val/loss" in line] == [8, 11]


def test_max_time_ends_a_run_without_other_bounds():
    trainer = VectorTrainer(linear(), DataLoader(Endless(), batch_size=4), SGD, max_time=0.2, epoch_length=5)
    trainer.fit()
    assert trainer.global_step > 0


def test_min_steps_holds_off_an_early_stop():
    trainer = VectorTrainer(linear(), loader(), SGD, epochs=9, min_steps=20)
    trainer.should_stop = True
    trainer.fit()
    assert trainer.global_step == 20


def test_validation_runs_every_quarter_of_an_epoch():
    steps: list[int] = []

    class Steps(Callback):
        def on_validation_end(self, trainer):
            steps.append(trainer.global_step)

    VectorTrainer(linear(), loader(40), SGD, None, None, loader(4), callbacks=[Steps()], epochs=1,
                  val_every_n_epochs=0.25).fit()  # fmt: skip
    assert steps == [3, 5, 8, 10]


def test_limits_and_overfit_batches():
    seen: list[int] = []

    class Seen(Callback):
        def on_train_batch_start(self, trainer, batch, batch_idx):
            seen.extend(batch["index"].tolist())

    trainer = VectorTrainer(linear(), loader(shuffle=True), SGD, epochs=3, overfit_batches=2, callbacks=[Seen()])
    trainer.fit()
    assert trainer.global_step == 6
    assert seen[:8] == seen[8:16] == seen[16:]
    limited = VectorTrainer(linear(), loader(), SGD, epochs=2, limit_train_batches=3)
    limited.fit()
    assert limited.global_step == 6


def test_fast_dev_run_touches_everything_and_saves_nothing(tmp_path):
    trainer = VectorTrainer(linear(), loader(), SGD, None, None, loader(), epochs=50, fast_dev_run=2, exp_dir=tmp_path)
    trainer.fit()
    assert trainer.global_step == 2
    assert "val/loss" in trainer.metrics
    assert list(tmp_path.iterdir()) == []


def test_several_named_validation_loaders():
    trainer = VectorTrainer(linear(), loader(), SGD, None, None, {"near": loader(8), "far": loader(12)}, epochs=1)
    trainer.fit()
    assert {"val/near/loss", "val/near/mae", "val/far/loss"} <= set(trainer.metrics)


def test_training_does_not_depend_on_how_often_it_is_validated():
    weights = []
    for every in (1, 4):
        model = torch.nn.Sequential(linear(), torch.nn.Dropout(0.3))
        VectorTrainer(model, loader(noise=0.1, shuffle=True), SGD, None, None, loader(noise=1.0), epochs=2,
                      val_every_n_steps=every, seed=3).fit()  # fmt: skip
        weights.append(model[0].weight.detach().clone())
        torch.manual_seed(0)
    assert torch.equal(*weights)


def test_the_same_run_twice_is_bit_identical():
    weights = []
    for _ in range(2):
        model = torch.nn.Sequential(linear(seed=5), torch.nn.Dropout(0.3))
        VectorTrainer(model, loader(noise=0.5, shuffle=True, num_workers=0), SGD, epochs=3, seed=7).fit()
        weights.append(model[0].weight.detach().clone())
    assert torch.equal(*weights)


def test_a_non_finite_loss_ends_the_run_with_one_sentence():
    trainer = VectorTrainer(linear(), loader(), partial(torch.optim.SGD, lr=1e200), epochs=9, log_every_n_steps=5)
    with pytest.raises(UserError, match=r"train/loss is (nan|inf) at update 5 \(finite until 0\)"):
        trainer.fit()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "nothing ends this run"),
        ({"epochs": 0}, "trainer.epochs: must be at least 1, got 0"),
        ({"epochs": 1, "lr_scheduler_interval": "batch"}, "trainer.lr_scheduler_interval"),
        ({"epochs": 1, "max_non_finite": -1}, "trainer.max_non_finite: must be 0 or more, got -1"),
        ({"epochs": 1, "max_bad_fraction": 20}, "trainer.max_bad_fraction: must be a share from 0 to 1, got 20"),
        ({"epochs": 1, "gradient_checkpointing": True}, "Linear does not offer it"),
        ({"epochs": 1, "resume_from_checkpoint": "latest"}, "has no exp_dir"),
    ],
)
def test_options_without_a_meaning_are_refused(options, sentence):
    with pytest.raises(UserError, match=sentence):
        VectorTrainer(linear(), loader(), SGD, **options).fit()


def test_predict_keeps_the_order_of_the_data():
    assert VectorTrainer(linear()).predict(loader(10, 4)) == list(range(10))


def test_one_step_runs_few_lines_of_ours():
    """The loop stays readable: lines of trainer/ executed by one steady step, counted."""
    import sys

    lines: set[tuple[str, int]] = set()

    class Count(Callback):
        def on_train_batch_start(self, trainer, batch, batch_idx):
            if trainer.global_step == 4:
                sys.settrace(trace)
            elif trainer.global_step == 5:
                sys.settrace(None)

    def trace(frame, event, argument):
        if "trainer/" not in frame.f_code.co_filename or "tests/" in frame.f_code.co_filename:
            return None
        if event == "line":
            lines.add((frame.f_code.co_filename, frame.f_lineno))
        return trace

    VectorTrainer(linear(), loader(), SGD, epochs=1, callbacks=[Count()], max_grad_norm=1.0).fit()
    assert 20 < len(lines) < 170, len(lines)

"""Each callback does its one thing."""

from __future__ import annotations

import json
import time
from functools import partial

import pytest
import torch
from torch import nn

from tests.trainer.tiny import SGD, VectorTrainer, linear, loader
from trainer import Callback
from trainer.callbacks import (
    Diagnostics,
    EarlyStopping,
    ExponentialMovingAverage,
    Freeze,
    LearningRateMonitor,
    ModelCheckpoint,
    Profiler,
    ProgressBar,
    Throughput,
)
from trainer.callbacks.summary import summarize
from trainer.checkpoint import load_weights, read_weights
from utils.errors import UserError


def run(*callbacks: Callback, model: nn.Module | None = None, **options) -> VectorTrainer:
    options = {"epochs": 2} | options
    trainer = VectorTrainer(
        model or linear(), options.pop("data", None) or loader(), options.pop("optimizer", SGD), None, None, loader(8),
        callbacks=callbacks, **options,
    )  # fmt: skip
    trainer.fit()
    return trainer


def test_early_stopping_waits_for_its_patience():
    still = partial(torch.optim.SGD, lr=0.0)
    assert run(EarlyStopping(patience=3), optimizer=still, epochs=20).state.epochs_completed == 4
    assert run(EarlyStopping(patience=3), epochs=6).state.epochs_completed == 6


def test_early_stopping_names_the_metrics_there_are():
    with pytest.raises(UserError, match="no metric 'val/wer' was logged; validation has val/loss, val/mae"):
        run(EarlyStopping(monitor="val/wer"))


def test_best_checkpoint_takes_the_best_value_and_not_a_nan(tmp_path):
    values = iter([0.5, float("nan"), 0.9, 0.7])

    class Scores(VectorTrainer):
        def validation_step(self, batch, batch_idx):
            return {"score": (torch.tensor(next(values)), 1)}

    checkpoint = ModelCheckpoint(monitor="val/score", mode="max")
    Scores(linear(), loader(), SGD, None, None, loader(4), callbacks=[checkpoint], exp_dir=tmp_path, epochs=4).fit()
    assert (checkpoint.best.metric, checkpoint.best.value, checkpoint.best.step) == (
        "val/score",
        pytest.approx(0.9),
        24,
    )


def test_ema_is_the_recursion_and_what_is_validated_and_saved(tmp_path):
    model, after_updates, validated = linear(), [], []

    class Watch(Callback):
        def on_before_zero_grad(self, trainer, optimizer):
            after_updates.append(model.weight.detach().clone())

        def on_validation_batch_start(self, trainer, batch, batch_idx):
            validated.append(model.weight.detach().clone())

    start = model.weight.detach().clone()
    run(ExponentialMovingAverage(0.5), Watch(), ModelCheckpoint(), model=model, exp_dir=tmp_path, epochs=1)
    average = start
    for n, weight in enumerate(after_updates, start=1):
        decay = min(0.5, (1 + n) / (10 + n))
        average = decay * average + (1 - decay) * weight
    torch.testing.assert_close(validated[-1], average)
    assert torch.equal(model.weight, after_updates[-1])
    saved = tmp_path / "checkpoints/last"
    torch.testing.assert_close(read_weights(saved / "ema.safetensors")["weight"], average)
    assert torch.equal(read_weights(saved / "model.safetensors")["weight"], after_updates[-1])
    load_weights(other := linear(1), saved)
    torch.testing.assert_close(other.weight.detach(), average)


def test_freeze_keeps_what_matches_until_its_step():
    model = nn.Sequential(linear(), nn.Linear(1, 1).double())
    start, seen = model[0].weight.detach().clone(), {}

    class Watch(Callback):
        def on_train_batch_end(self, trainer, output, batch, batch_idx):
            seen[trainer.global_step] = torch.equal(model[0].weight, start)

    run(Watch(), Freeze(["0\\."], until_step=5), model=model, epochs=1)
    assert seen == {step: step <= 5 for step in range(1, 9)}


def test_freeze_refuses_a_pattern_that_matches_nothing():
    with pytest.raises(UserError, match=r"callbacks.freeze.patterns: 'encoder' matches no parameter"):
        run(Freeze(["encoder"]))


def test_learning_rates_and_throughput_are_logged():
    metrics = run(LearningRateMonitor(), Throughput("index", "indices", 2.0), log_every_n_steps=4).metrics
    assert metrics["lr"] == 0.05
    assert metrics["perf/steps_per_s"] > 0
    assert 0 <= metrics["perf/data_wait"] <= 1
    assert 0 < metrics["perf/data_cpu"] <= 1
    assert metrics["perf/indices_per_s"] > 0
    assert 0.01 < metrics["perf/memory_gib"] < 100


def test_learning_rates_of_groups_are_told_apart():
    class Groups(VectorTrainer):
        def parameters_to_optimize(self, module):
            return [{"params": [module.weight], "lr": 0.1}, {"params": [module.bias]}]

    trainer = Groups(linear(), loader(), SGD, callbacks=[LearningRateMonitor()], epochs=1)
    trainer.fit()
    assert (trainer.metrics["lr/0"], trainer.metrics["lr/1"]) == (0.1, 0.05)


def test_the_bar_redraws_by_time_not_by_step(capsys):
    redraws = []

    class Counted(ProgressBar):
        def _redraw(self, trainer):
            redraws.append(trainer.global_step)
            super()._redraw(trainer)

    started = time.perf_counter()
    trainer = VectorTrainer(linear(), loader(400, 1), SGD, epochs=1, callbacks=[Counted(refresh_seconds=0.1)])
    trainer.fit()
    assert redraws[-1] == 400
    assert len(redraws) <= (time.perf_counter() - started) / 0.1 + 2
    assert "400/400" in capsys.readouterr().err


def test_the_summary_counts_parameters():
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 1))
    model[0].requires_grad_(False)
    assert [line.split() for line in summarize(model).splitlines()] == [
        ["model", "Sequential", "19", "(4", "train)"],
        ["0", "Linear", "15", "(0", "train)"],
        ["1", "Linear", "4"],
    ]


def test_diagnostics_name_the_failing_batch(tmp_path):
    class Failing(VectorTrainer):
        def training_step(self, batch, batch_idx):
            if batch_idx == 2:
                raise RuntimeError("boom")
            return super().training_step(batch, batch_idx)

    data = loader()
    collate = data.collate_fn
    data.collate_fn = lambda items: {"id": [f"clip{i['index']}" for i in items], **collate(items)}
    with pytest.raises(RuntimeError):
        Failing(linear(), data, SGD, epochs=1, callbacks=[Diagnostics()], exp_dir=tmp_path).fit()
    report = json.loads((tmp_path / "failed_batch_rank0.json").read_text())
    assert report["batch"]["ids"] == ["clip8", "clip9", "clip10", "clip11"]
    assert report["batch"]["shapes"]["x"] == "float64[4, 4]"


def test_diagnostics_find_the_first_non_finite_loss(tmp_path):
    class Poisoned(VectorTrainer):
        def training_step(self, batch, batch_idx):
            output = super().training_step(batch, batch_idx)
            if batch_idx == 1:
                output.loss = output.loss * float("nan")
            return output

    with pytest.raises(UserError):
        Poisoned(
            linear(), loader(), SGD, epochs=1, callbacks=[Diagnostics()], exp_dir=tmp_path, log_every_n_steps=4
        ).fit()
    report = json.loads((tmp_path / "failed_batch_rank0.json").read_text())
    assert report["first_non_finite_loss"]["batch_idx"] == 1


def test_the_profiler_writes_a_trace(tmp_path):
    run(Profiler(skip_batches=1, num_batches=2), exp_dir=tmp_path)
    trace = json.loads((tmp_path / "profile/trace_rank0.json").read_text())
    assert any("aten::" in event.get("name", "") for event in trace["traceEvents"])
    assert "aten::" in (tmp_path / "profile/operators_rank0.txt").read_text()

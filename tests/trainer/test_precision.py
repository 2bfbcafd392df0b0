"""What the machine is asked for: precision, scaling, compilation, determinism."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import nn

from benchmarks.kill_and_resume import differences
from tests.trainer.tiny import SGD, VectorTrainer, linear, loader
from trainer import Callback
from trainer.callbacks import ModelCheckpoint
from trainer.checkpoint import latest, load
from utils.errors import UserError


def trained(**options) -> torch.Tensor:
    model = linear()
    VectorTrainer(model, loader(), SGD, epochs=2, **options).fit()
    return model.weight.detach().clone()


@pytest.mark.usefixtures("own_state")
def test_bf16_runs_the_forward_in_bf16_and_keeps_float32_weights():
    seen = set()

    class Watched(nn.Linear):
        def forward(self, x):
            y = super().forward(x)
            seen.add(y.dtype)
            return y

    class Floats(VectorTrainer):
        def training_step(self, batch, batch_idx):
            return super().training_step({"x": batch["x"].float(), "y": batch["y"].float()}, batch_idx)

    model = Watched(4, 1)
    trainer = Floats(model, loader(), SGD, None, None, loader(8), epochs=8, mixed_precision="bf16")
    trainer.fit()
    assert seen == {torch.bfloat16}
    assert model.weight.dtype == torch.float32
    assert trainer.metrics["val/loss"] < 0.1


def with_scaler(trainer: VectorTrainer, scale: float) -> VectorTrainer:
    """The scaler of fp16, which accelerate gives to GPUs only."""
    trainer.accelerator.state._mixed_precision = "fp16"
    trainer.accelerator.native_amp = True
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=10_000)
    trainer.accelerator.autocast_handler = None
    return trainer


@pytest.mark.usefixtures("own_state")
def test_a_scaler_changes_no_weights_also_with_sums_accumulation_and_clipping(monkeypatch):
    options = {"gradient_accumulation_steps": 2, "max_grad_norm": 0.5}
    expected = trained(**options)
    model = linear()
    trainer = with_scaler(VectorTrainer(model, loader(), SGD, epochs=2, **options), 2.0**12)
    monkeypatch.setattr(trainer.accelerator, "prepare_model", lambda model, **kw: model)  # no autocast of float64
    trainer.fit()
    torch.testing.assert_close(model.weight.detach(), expected, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("own_state")
def test_a_skipped_update_does_not_step_the_schedule(monkeypatch):
    class Overflowing(VectorTrainer):
        def training_step(self, batch, batch_idx):
            output = super().training_step(batch, batch_idx)
            if batch_idx == 1:
                output.loss = output.loss * float("inf")
            return output

    schedule = partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)
    model = linear()
    trainer = with_scaler(Overflowing(model, loader(16), SGD, schedule, epochs=1, log_every_n_steps=100), 4.0)
    monkeypatch.setattr(trainer.accelerator, "prepare_model", lambda model, **kw: model)
    monkeypatch.setattr(trainer, "_log_training", lambda: None)  # the loss is not finite on purpose
    trainer.fit()
    assert trainer.units["model"].scheduler.last_epoch == 3
    assert torch.isfinite(model.weight).all()


@pytest.mark.usefixtures("own_state")
@pytest.mark.parametrize(("killed_at", "good_updates"), [(7, 2), (9, 1)])
def test_a_killed_run_goes_on_with_the_scalers_scale_and_growth_and_ends_bit_identical(
    tmp_path, monkeypatch, killed_at, good_updates
):
    """The scale doubles after 3 good updates and halves at an overflow: both lie before and behind the kill."""

    class Overflowing(VectorTrainer):
        def on_after_backward(self):
            if self.global_step in (3, 11):
                self.unwrapped_model.weight.grad[0, 0] = float("inf")

    class Unplug(Callback):
        def on_train_batch_start(self, trainer, batch, batch_idx):
            if trainer.global_step == killed_at:
                raise KeyboardInterrupt

    def run(name: str, *more: Callback, **options) -> None:
        for singleton in (AcceleratorState, GradientState, PartialState):
            singleton._reset_state()
        schedule = partial(torch.optim.lr_scheduler.StepLR, step_size=4, gamma=0.5)
        trainer = Overflowing(
            linear(), loader(32, 4, noise=0.3, shuffle=True), partial(torch.optim.AdamW, lr=0.01), schedule, epochs=2,
            callbacks=[ModelCheckpoint(every_n_steps=2), *more], exp_dir=tmp_path / name, max_grad_norm=1.0, **options,
        )  # fmt: skip
        with_scaler(trainer, 2.0**10)
        trainer.accelerator.scaler.set_growth_interval(3)
        monkeypatch.setattr(trainer.accelerator, "prepare_model", lambda model, **kw: model)
        trainer.fit()

    def newest(name: str) -> dict[str, Any]:
        return load(latest(tmp_path / name / "checkpoints")).training

    run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("killed", Unplug())
    assert newest("killed")["scaler"]["_growth_tracker"] == good_updates
    run("killed", auto_resume=True)
    assert differences(tmp_path / "whole", tmp_path / "killed") == []
    scaler = newest("whole")["scaler"]
    # Good updates 3 | 3, 3, 1 | 3, 1 between the overflows: doubled 4 times, halved twice.
    assert (scaler["scale"], scaler["_growth_tracker"]) == (2.0**12, 1)
    assert newest("whole")["units"]["model"]["scheduler"]["last_epoch"] == 14


def test_a_compiled_model_trains_to_the_same_weights():
    assert torch.equal(trained(compile={"backend": "eager"}), trained())


def test_deterministic_is_asked_of_torch():
    try:
        trained(deterministic="warn")
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_detect_anomaly_points_at_the_operation():
    class Root(VectorTrainer):
        def training_step(self, batch, batch_idx):
            return (self.model(batch["x"]) * 0).sqrt().sum() * 0

    try:
        with pytest.raises(RuntimeError, match="SqrtBackward0"):
            Root(linear(), loader(), SGD, epochs=1, detect_anomaly=True).fit()
    finally:
        torch.autograd.set_detect_anomaly(False)


def test_gradient_checkpointing_is_asked_of_the_model():
    class Offering(nn.Linear):
        asked = False

        def gradient_checkpointing_enable(self):
            self.asked = True

    model = Offering(4, 1).double()
    VectorTrainer(model, loader(), SGD, max_steps=1, gradient_checkpointing=True).fit()
    assert model.asked


@pytest.mark.parametrize(
    ("given", "seconds"), [(5, 5), ("90", 90), ("01:30", 90), ("02:00:00", 7200), ("1:0:0:0", 86400)]
)
def test_durations(given, seconds):
    from trainer.accelerator import parse_duration

    assert parse_duration(given) == seconds
    with pytest.raises(UserError, match=r"trainer.max_time: expected seconds or HH:MM:SS, got 'soon'"):
        parse_duration("soon")

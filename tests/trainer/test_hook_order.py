"""The golden sequence of hooks."""

from __future__ import annotations

import pytest

from tests.trainer.tiny import SGD, VectorTrainer, linear, loader
from trainer import Callback
from trainer.callbacks import ModelCheckpoint
from trainer.hooks import HOOK_NAMES, Hooks

GOLDEN = """
on_fit_start
on_validation_start on_validation_epoch_start
on_validation_batch_start validation_step on_validation_batch_end
on_validation_epoch_end on_validation_end
on_train_start
on_train_epoch_start
on_train_batch_start training_step on_before_backward on_after_backward on_train_batch_end
on_train_batch_start training_step on_before_backward on_after_backward
on_before_optimizer_step on_before_zero_grad on_train_batch_end
on_log
on_update_end
on_train_batch_start training_step on_before_backward on_after_backward
on_before_optimizer_step on_before_zero_grad on_train_batch_end
on_log
on_validation_start on_validation_epoch_start
on_validation_batch_start validation_step on_validation_batch_end
on_validation_batch_start validation_step on_validation_batch_end
on_validation_epoch_end on_validation_end
on_train_epoch_end
on_update_end on_save_checkpoint
on_train_end on_fit_end
""".split()  # noqa: SIM905 - reads as the sequence it is


def recording(events: list[str]) -> type[VectorTrainer]:
    def recorder(name):
        return lambda self, *arguments: events.append(name)

    hooks = {name: recorder(name) for name in HOOK_NAMES}

    def training_step(self, batch, batch_idx):
        events.append("training_step")
        return VectorTrainer.training_step(self, batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        events.append("validation_step")
        return VectorTrainer.training_step(self, batch, batch_idx)

    steps = {"training_step": training_step, "validation_step": validation_step}
    return type("Recording", (VectorTrainer,), hooks | steps)


def test_the_sequence_of_a_run_with_accumulation_validation_and_a_checkpoint(tmp_path):
    """Three batches, accumulation 2: one full window and a partial one."""
    events: list[str] = []
    recording(events)(
        linear(), loader(12), SGD, None, None, loader(8), callbacks=[ModelCheckpoint()], exp_dir=tmp_path,
        epochs=1, gradient_accumulation_steps=2, log_every_n_steps=1, num_sanity_val_steps=1,
    ).fit()  # fmt: skip
    assert events == GOLDEN


def test_a_callback_runs_after_the_trainers_own_hook_in_config_order():
    events: list[str] = []

    class Own(VectorTrainer):
        def on_train_start(self):
            events.append("trainer")

    class Named(Callback):
        def __init__(self, name):
            self.name = name

        def on_train_start(self, trainer):
            events.append(self.name)

    Own(linear(), loader(), SGD, max_steps=1, callbacks={"b": Named("first"), "gone": None, "a": Named("second")}).fit()
    assert events == ["trainer", "first", "second"]


def test_an_exception_reaches_its_hook_and_the_caller():
    seen: list[BaseException] = []

    class Failing(VectorTrainer):
        def training_step(self, batch, batch_idx):
            raise RuntimeError("boom")

        def on_exception(self, error):
            seen.append(error)

    with pytest.raises(RuntimeError, match="boom"):
        Failing(linear(), loader(), SGD, epochs=1).fit()
    assert [str(error) for error in seen] == ["boom"]


def test_a_callback_has_every_hook_of_the_trainer():
    assert set(HOOK_NAMES) == {name for name in vars(Callback) if name.startswith("on_")}
    assert set(HOOK_NAMES) == {name for name in vars(Hooks) if name.startswith("on_")}

"""A signal inside a validation: heeded between two batches; the resumed run does the validation again."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.faulty import make
from tests.trainer.test_bad_samples import named_in, rotten
from tests.trainer.test_resume import assert_same
from tests.trainer.tiny import SGD, VectorTrainer, linear, loader
from trainer import Callback
from trainer.checkpoint import latest, load
from trainer.hooks import resolve_hooks
from trainer.interruption import Interrupted


class Hurt(Callback):
    """SIGTERM while a batch of the validation of update `at` is worked on."""

    def __init__(self, at: int, batch_idx: int = 0) -> None:
        self.at, self.batch_idx, self.seen = at, batch_idx, []

    def on_validation_batch_end(self, trainer, output, batch, batch_idx):
        self.seen.append((trainer.global_step, batch_idx))
        if (trainer.global_step, batch_idx) == (self.at, self.batch_idx):
            os.kill(os.getpid(), signal.SIGTERM)


def with_callback(trainer: VectorTrainer, callback: Callback) -> VectorTrainer:
    trainer.callbacks["hurt"] = callback
    trainer._hooks = resolve_hooks(trainer, trainer.callbacks.values())
    return trainer


def scheduled(exp_dir: Path, kind: str, **options: Any) -> VectorTrainer:
    trainer = make(exp_dir, **options)
    schedules = torch.optim.lr_scheduler
    if kind == "epoch":
        trainer.lr_scheduler_interval = "epoch"
        trainer.val_every_n_steps = None
        trainer.lr_scheduler = partial(schedules.StepLR, step_size=1, gamma=0.5)
    if kind == "metric":
        trainer.lr_scheduler = partial(schedules.ReduceLROnPlateau, patience=0, factor=0.5, threshold=0.5)
    return trainer


@pytest.mark.parametrize(
    ("kind", "at", "batch_idx"),
    [("step", 5, 0), ("step", 15, 1), ("step", 24, 0), ("epoch", 8, 0), ("epoch", 24, 1), ("metric", 10, 0)],
)
def test_the_validation_is_left_at_once_and_done_again_by_the_resumed_run_which_ends_bit_identical(
    tmp_path, kind, at, batch_idx
):
    """Inside an epoch, at its edge, and in the last validation; with EMA, best-k and early stopping behind it."""
    scheduled(tmp_path / "whole", kind).fit()
    hurt = Hurt(at, batch_idx)
    stopped = with_callback(scheduled(tmp_path / "run", kind), hurt)
    with pytest.raises(Interrupted) as raised:
        stopped.fit()
    assert raised.value.code == 143
    assert hurt.seen[-1] == (at, batch_idx)
    assert latest(tmp_path / "run/checkpoints").name == f"step_{at:08d}"

    again = Hurt(-1)
    with_callback(scheduled(tmp_path / "run", kind, auto_resume=True), again).fit()
    assert again.seen[:2] == [(at, 0), (at, 1)]
    assert_same(tmp_path / "whole", tmp_path / "run")
    states = [load(latest(tmp_path / name / "checkpoints")).training["state"] for name in ("whole", "run")]
    assert states[0] == states[1]


def test_weights_are_not_those_of_the_average_that_was_being_validated(tmp_path):
    with pytest.raises(Interrupted):
        with_callback(make(tmp_path / "run"), Hurt(10)).fit()
    with pytest.raises(Interrupted):
        make(tmp_path / "whole", val_every_n_steps=100, faults=[("SIGTERM", 9)]).fit()
    run, whole = (load(latest(tmp_path / name / "checkpoints")) for name in ("run", "whole"))
    for stem in ("model", "ema"):
        assert all(torch.equal(run.weights[stem][name], whole.weights[stem][name]) for name in whole.weights[stem])


def test_a_second_signal_in_the_validation_done_again_is_heeded_as_the_first(tmp_path):
    make(tmp_path / "whole").fit()
    for _ in range(2):
        with pytest.raises(Interrupted):
            with_callback(make(tmp_path / "run", auto_resume=True), Hurt(10)).fit()
    make(tmp_path / "run", auto_resume=True).fit()
    assert_same(tmp_path / "whole", tmp_path / "run")


def test_a_run_that_was_to_end_with_that_validation_still_does(tmp_path):
    """A wish to stop, agreed on before the validation that ends the run."""

    class Wish(Callback):
        def on_train_batch_end(self, trainer, output, batch, batch_idx):
            trainer.should_stop |= trainer.global_step == 7

    def run(name, at, **options):
        callbacks = {"wish": Wish(), "hurt": Hurt(at)}
        trainer = VectorTrainer(linear(), loader(64), SGD, None, None, loader(8), epochs=2, exp_dir=tmp_path / name,
                                callbacks=callbacks, **options)  # fmt: skip
        trainer.fit()
        return trainer

    assert run("whole", -1).global_step == 7
    with pytest.raises(Interrupted):
        run("run", 7)
    assert run("run", -1, auto_resume=True).global_step == 7


def test_bad_samples_of_a_validation_done_twice_count_once(tmp_path):
    def run(name, at, batch_idx=0):
        validation = {"near": rotten(16, (1,)), "far": rotten(16, (2, 6))}
        trainer = VectorTrainer(linear(), rotten(64, (3, 40)), SGD, None, None, validation, epochs=1, auto_resume=True,
                                exp_dir=tmp_path / name, callbacks=[Hurt(at, batch_idx)], val_every_n_steps=5,
                                log_every_n_steps=3)  # fmt: skip
        trainer.fit()
        return trainer

    whole = run("whole", -1)
    for at, batch_idx in ((5, 0), (10, 2)):  # in the first loader, and behind its bad sample
        with pytest.raises(Interrupted):
            run("run", at, batch_idx)
    assert run("run", -1).bad_samples.state_dict() == whole.bad_samples.state_dict()
    assert sorted(line["id"] for line in named_in(tmp_path / "run")) == ["1", "2", "3", "40", "6"]


def test_a_sanity_check_and_a_validation_alone_are_not_broken_off(tmp_path):
    hurt = Hurt(0)
    trainer = VectorTrainer(linear(), loader(), SGD, None, None, loader(8), epochs=1, num_sanity_val_steps=2,
                            callbacks=[hurt], exp_dir=tmp_path)  # fmt: skip
    with pytest.raises(Interrupted):
        trainer.fit()
    assert hurt.seen == [(0, 0), (0, 1)]
    assert trainer.global_step == 1
    assert trainer.validate()["val/loss"] > 0

"""Losses, gradients and weights that are not finite: raise, skip, rollback."""

from __future__ import annotations

import json
import math
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from tests.trainer.tiny import SGD, MeanTrainer, Vectors, VectorTrainer, linear
from trainer import Callback
from trainer.callbacks import ModelCheckpoint
from trainer.checkpoint import step_folders
from trainer.hooks import resolve_hooks
from utils.errors import UserError


class Named(Vectors):
    """32 items of which some are not numbers."""

    def __init__(self, bad: tuple[int, ...] = (), value: float = math.nan) -> None:
        super().__init__(32)
        self.x[list(bad)] = value

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**super().__getitem__(index), "id": f"item{index}"}


class Remember(Callback):
    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def on_train_batch_start(self, trainer, batch, batch_idx):
        self.batches.append(batch["index"].tolist())


def make(exp_dir, bad=(), *, value=math.nan, accumulation=1, every=2, kind=VectorTrainer, model=None, **options):
    data = torch.utils.data.DataLoader(Named(bad, value), batch_size=4)
    defaults = {"epochs": 1, "log_every_n_steps": 4}
    return kind(
        model or linear(), data, partial(torch.optim.AdamW, lr=0.01), exp_dir=exp_dir,
        callbacks={"checkpoint": ModelCheckpoint(every_n_steps=every), "remember": Remember()},
        gradient_accumulation_steps=accumulation, **defaults | options,
    )  # fmt: skip


def bad_batches(exp_dir) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((exp_dir / "bad_batches").glob("*.json"))]


# ---------------------------------------------------------------------------------------------------------------- raise


def test_raise_ends_at_the_log_names_the_batch_and_keeps_it(tmp_path):
    trainer = make(tmp_path, bad=(9,), every=100)
    with pytest.raises(UserError, match=r"loss is nan at update 4 \(finite until 0\): lower .*bad_batches"):
        trainer.fit()
    (told,) = bad_batches(tmp_path)
    assert told["ids"] == ["item8", "item9", "item10", "item11"]
    assert told["batch_idx"] == 2
    (file,) = (tmp_path / "bad_batches").glob("*.pt")
    assert torch.load(file, weights_only=True)["x"][1].isnan().all()


def test_no_checkpoint_with_such_weights_is_written(tmp_path):
    """The log would notice only at update 100; the save of update 4 comes before."""
    with pytest.raises(UserError, match=r"a weight is not finite at update 4"):
        make(tmp_path, bad=(9,), log_every_n_steps=100).fit()
    assert [step for step, _ in step_folders(tmp_path / "checkpoints")] == [2]


def test_no_validation_with_such_weights(tmp_path):
    trainer = make(tmp_path, bad=(9,), log_every_n_steps=100, every=100, val_every_n_steps=3)
    trainer.val_dataloader = trainer.train_dataloader
    with pytest.raises(UserError, match=r"a weight is not finite at update 3"):
        trainer.fit()


@pytest.mark.parametrize(("policy", "waits"), [("raise", 0), ("rollback", 0), ("skip", 1)])
def test_only_skip_waits_for_the_device_between_two_logs(tmp_path, monkeypatch, policy, waits):
    """Once per update; every way from a tensor to a Python number is counted."""
    count = 0

    def counted(read):
        def method(self):
            nonlocal count
            count += 1
            return read(self)

        return method

    for name in ("item", "tolist", "__bool__", "__float__", "__int__"):
        monkeypatch.setattr(torch.Tensor, name, counted(getattr(torch.Tensor, name)))
    at_update: list[int] = []

    class Note(Callback):
        def on_train_batch_start(self, trainer, batch, batch_idx):
            at_update.append(count)

    data = torch.utils.data.DataLoader(Vectors(32), batch_size=4)
    VectorTrainer(linear(), data, SGD, epochs=1, log_every_n_steps=100, max_grad_norm=1.0, on_non_finite=policy,
                  callbacks=[Note()]).fit()  # fmt: skip
    assert [after - before for before, after in pairwise(at_update)] == [waits] * 7


# ----------------------------------------------------------------------------------------------------------------- skip


@pytest.mark.parametrize(("kind", "value"), [(VectorTrainer, math.nan), (MeanTrainer, math.inf)])
@pytest.mark.parametrize("norm", [None, 1.0])
def test_skip_leaves_no_trace(tmp_path, kind, value, norm):
    """Weights, optimizer and logged loss are those of a run without that batch."""
    options = {"kind": kind, "max_grad_norm": norm, "log_every_n_steps": 100}
    trainer = make(tmp_path / "bad", bad=(9,), value=value, on_non_finite="skip", **options)
    trainer.fit()

    clean = make(tmp_path / "clean", **options)
    keep = [i for i in range(32) if not 8 <= i < 12]
    clean.train_dataloader = torch.utils.data.DataLoader(torch.utils.data.Subset(Named(), keep), batch_size=4)
    clean.fit()
    assert torch.equal(trainer.model.weight, clean.model.weight)
    assert trainer.metrics["train/loss"] == clean.metrics["train/loss"]
    assert (trainer.state.num_non_finite, trainer.global_step, clean.global_step) == (1, 8, 7)
    assert [told["ids"][1] for told in bad_batches(tmp_path / "bad")] == ["item9"]


def test_skip_does_not_step_the_schedule_and_spares_running_statistics(tmp_path):
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 1)).double()
    trainer = make(tmp_path, bad=(9,), model=model, on_non_finite="skip", accumulation=2)
    trainer.lr_scheduler = lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 / (1 + step))
    trainer.fit()
    assert model[0].running_mean.isfinite().all()
    assert model[0].num_batches_tracked == 6
    assert trainer.units["model"].scheduler.last_epoch == 3


def test_skip_is_bounded(tmp_path):
    with pytest.raises(UserError, match=r"trainer.max_non_finite: update \d is one more than the 1 allowed"):
        make(tmp_path, bad=(9, 13), on_non_finite="skip", max_non_finite=1).fit()


def test_a_gradient_alone_is_enough_to_skip(tmp_path):
    class Steep(VectorTrainer):
        def on_after_backward(self):
            if self.global_step == 3:
                self.model.weight.grad[0, 0] = math.inf

    trainer = make(tmp_path, kind=Steep, on_non_finite="skip")
    trainer.fit()
    assert trainer.state.num_non_finite == 1
    assert trainer.model.weight.isfinite().all()


def test_the_count_survives_a_resume(tmp_path):
    make(tmp_path, bad=(9,), on_non_finite="skip", max_steps=4).fit()
    again = make(tmp_path, bad=(9, 30), on_non_finite="skip", max_non_finite=1, auto_resume=True)
    with pytest.raises(UserError, match=r"one more than the 1 allowed"):
        again.fit()


# ------------------------------------------------------------------------------------------------------------- rollback


def test_rollback_goes_back_to_the_checkpoint_and_on_with_the_data_behind(tmp_path):
    trainer = make(tmp_path, bad=(17,), on_non_finite="rollback")
    trainer.fit()
    # Batch 4 is bad; its update, the 5th, spoils the weights; the save of the 6th notices and goes back to the 4th.
    assert trainer.callbacks["remember"].batches == [list(range(i, i + 4)) for i in range(0, 32, 4)]
    assert trainer.global_step == 6
    assert trainer.model.weight.isfinite().all()
    assert [told["ids"][1] for told in bad_batches(tmp_path)] == ["item17"]

    clean = make(tmp_path / "clean")
    keep = [i for i in range(32) if not 16 <= i < 24]
    clean.train_dataloader = torch.utils.data.DataLoader(torch.utils.data.Subset(Named(), keep), batch_size=4)
    clean.fit()
    assert torch.equal(trainer.model.weight, clean.model.weight)


def test_rollback_at_a_log_forgets_what_was_logged_in_between(tmp_path):
    trainer = make(tmp_path, bad=(17,), on_non_finite="rollback", every=3, log_every_n_steps=1)
    trainer.fit()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert all(math.isfinite(line["train/loss"]) for line in lines)


def test_a_run_killed_behind_a_rollback_resumes_behind_the_bad_batch(tmp_path):
    class Unplug(Callback):
        def on_train_batch_start(self, trainer, batch, batch_idx):
            if batch_idx == 6:
                raise KeyboardInterrupt

    trainer = make(tmp_path / "killed", bad=(17,), on_non_finite="rollback")
    trainer.callbacks["unplug"] = Unplug()
    trainer._hooks = resolve_hooks(trainer, trainer.callbacks.values())
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    again = make(tmp_path / "killed", bad=(17,), on_non_finite="rollback", auto_resume=True)
    again.fit()
    assert again.callbacks["remember"].batches == [list(range(24, 28)), list(range(28, 32))]
    assert again.state.num_non_finite == 1


def test_rollback_without_a_checkpoint_is_said(tmp_path):
    with pytest.raises(UserError, match=r"there is no checkpoint yet to go back to"):
        make(tmp_path, bad=(1,), on_non_finite="rollback", every=100).fit()


def test_an_unknown_policy_is_refused():
    with pytest.raises(UserError, match=r"trainer.on_non_finite: must be one of raise, skip, rollback, got 'ignore'"):
        VectorTrainer(linear(), None, SGD, on_non_finite="ignore")

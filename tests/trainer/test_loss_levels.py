"""A finite loss far above its level: raise, skip, rollback; and the level over a resume."""

from __future__ import annotations

import json
from functools import partial
from itertools import pairwise

import pytest
import torch

from tests.trainer.test_non_finite import Named, Remember, bad_batches
from tests.trainer.tiny import SGD, MeanTrainer, Vectors, VectorTrainer, linear
from trainer import Callback
from trainer.callbacks import ModelCheckpoint
from trainer.checkpoint import latest, load, step_folders
from trainer.hooks import resolve_hooks
from trainer.loss_levels import LossLevels
from utils.errors import UserError


class Many(Named):
    """128 items to 32 batches; those of `high` have a target a hundred times too large."""

    def __init__(self, high: tuple[int, ...] = ()) -> None:
        Vectors.__init__(self, 128)
        self.y[list(high)] *= 100


def make(exp_dir, high=(), *, every=4, kind=VectorTrainer, data=None, **options):
    loader = torch.utils.data.DataLoader(data or Many(high), batch_size=4)
    defaults = {"epochs": 1, "log_every_n_steps": 8, "max_loss_ratio": 20.0}
    return kind(
        linear(), loader, partial(torch.optim.AdamW, lr=0.001), exp_dir=exp_dir,
        callbacks={"checkpoint": ModelCheckpoint(every_n_steps=every), "remember": Remember()}, **defaults | options,
    )  # fmt: skip


def levels(values: list[float], ratio: float = 3.0) -> tuple[LossLevels, list[int]]:
    """Losses of one update each; which are spikes."""
    found = LossLevels(ratio, torch.device("cpu"), 1)
    spikes = []
    for update, value in enumerate(values):
        found.see("loss", update, torch.tensor(value, dtype=torch.float64), None)
        found.end_update("loss", update)
        if found.first_spike() is not None:
            spikes.append(update)
    return found, spikes


# ------------------------------------------------------------------------------------------------------ what is a spike


def test_a_loss_above_the_ratio_times_the_median_is_a_spike_and_does_not_raise_the_level():
    found, spikes = levels([1.0] * 9 + [2.0] * 11 + [6.01, 6.01, 5.99])
    assert spikes == [20, 21]
    assert found.state_dict() == {"loss": [1.0] * 9 + [2.0] * 11 + [5.99]}


def test_nothing_is_a_spike_before_16_updates_are_known():
    assert levels([1.0] * 15 + [100.0] + [100.0])[1] == [16]


def test_the_level_follows_the_last_128_updates():
    assert levels([1.0] * 100 + [2.5] * 65 + [7.0])[1] == []
    assert levels([1.0] * 100 + [2.5] * 60 + [7.0])[1] == [160]


def test_a_loss_below_zero_has_a_level_too():
    assert levels([-10.0] * 20 + [5.0, 10.5], ratio=3.0)[1] == [21]


def test_a_loss_that_is_not_finite_is_left_to_others():
    found, spikes = levels([1.0] * 20 + [float("inf"), float("nan")])
    assert spikes == []
    assert len(found.state_dict()["loss"]) == 20


# ---------------------------------------------------------------------------------------------------------------- raise


def test_raise_ends_at_the_log_and_names_the_update_its_level_and_the_batch(tmp_path):
    trainer = make(tmp_path, high=(81,), every=100)
    with pytest.raises(
        UserError, match=r"train/loss is .* at update 21, more than 20 times its level of .*\(trainer.max_loss_ratio\)"
    ):
        trainer.fit()
    assert trainer.global_step == 24
    assert [told["ids"][1] for told in bad_batches(tmp_path)] == ["item81"]


def test_no_checkpoint_behind_a_spike_is_written(tmp_path):
    with pytest.raises(UserError, match=r"at update 21, more than 20 times"):
        make(tmp_path, high=(81,), log_every_n_steps=100).fit()
    assert [step for step, _ in step_folders(tmp_path / "checkpoints")] == [20]


def test_the_update_is_judged_as_a_whole_also_with_means_and_accumulation(tmp_path):
    """The bad micro-batch alone is kept."""
    trainer = make(tmp_path, high=(117,), kind=MeanTrainer, every=100, gradient_accumulation_steps=2, epochs=2,
                   max_loss_ratio=10)  # fmt: skip
    with pytest.raises(UserError, match=r"at update 31, more than 10 times"):
        trainer.fit()
    assert [told["ids"][1] for told in bad_batches(tmp_path)] == ["item117"]


def test_a_ratio_that_means_nothing_is_refused():
    with pytest.raises(UserError, match=r"trainer.max_loss_ratio: must be above 1, or null, got 0.5"):
        VectorTrainer(linear(), None, SGD, max_loss_ratio=0.5)


@pytest.mark.parametrize(("policy", "waits"), [("raise", 0), ("rollback", 0), ("skip", 2)])
def test_only_skip_waits_for_the_device_between_two_logs(tmp_path, monkeypatch, policy, waits):
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
    VectorTrainer(linear(), data, SGD, epochs=1, log_every_n_steps=100, on_non_finite=policy, max_loss_ratio=3.0,
                  callbacks=[Note()]).fit()  # fmt: skip
    assert [after - before for before, after in pairwise(at_update)] == [waits] * 7


# ---------------------------------------------------------------------------------------------------- skip and rollback


def test_skip_leaves_no_trace(tmp_path):
    trainer = make(tmp_path / "high", high=(81,), on_non_finite="skip", log_every_n_steps=100)
    trainer.fit()
    keep = [i for i in range(128) if not 80 <= i < 84]
    clean = make(tmp_path / "clean", data=torch.utils.data.Subset(Many(), keep), log_every_n_steps=100)
    clean.fit()
    assert torch.equal(trainer.model.weight, clean.model.weight)
    assert trainer.metrics["train/loss"] == clean.metrics["train/loss"]
    assert trainer.loss_levels.state_dict() == clean.loss_levels.state_dict()
    assert (trainer.state.num_non_finite, trainer.global_step) == (1, 32)
    assert [told["ids"][1] for told in bad_batches(tmp_path / "high")] == ["item81"]


def test_rollback_goes_back_to_before_the_spike_and_on_with_the_data_behind(tmp_path):
    trainer = make(tmp_path / "high", high=(81,), on_non_finite="rollback")
    trainer.fit()
    # Update 21 is the spike; the save of update 24 notices, and goes back to update 20.
    assert trainer.global_step == 28
    keep = [i for i in range(128) if not 80 <= i < 96]
    clean = make(tmp_path / "clean", data=torch.utils.data.Subset(Many(), keep))
    clean.fit()
    assert torch.equal(trainer.model.weight, clean.model.weight)
    assert trainer.loss_levels.state_dict() == clean.loss_levels.state_dict()


def test_spikes_are_bounded_together_with_what_is_not_finite(tmp_path):
    data = Many(high=(81,))
    data.x[101] = float("nan")
    trainer = make(tmp_path, data=data, on_non_finite="skip", max_non_finite=1)
    with pytest.raises(UserError, match=r"not finite, or a loss above trainer.max_loss_ratio: lower"):
        trainer.fit()
    assert trainer.state.num_non_finite == 2


# --------------------------------------------------------------------------------------------------------------- resume


@pytest.mark.parametrize("policy", ["skip", "rollback"])
@pytest.mark.parametrize("killed_at", [18, 27])
def test_the_level_survives_a_resume(tmp_path, policy, killed_at):
    """The resumed run meets the spike, or has met it, with the same level: it ends with the same bits."""

    class Unplug(Callback):
        def on_train_batch_start(self, trainer, batch, batch_idx):
            if trainer.global_step == killed_at:
                raise KeyboardInterrupt

    def again(name, **options):
        return make(tmp_path / name, high=(81,), on_non_finite=policy, every=3, log_every_n_steps=7, **options)

    whole, killed = again("whole"), again("killed")
    whole.fit()
    killed.callbacks["unplug"] = Unplug()
    killed._hooks = resolve_hooks(killed, killed.callbacks.values())
    with pytest.raises(KeyboardInterrupt):
        killed.fit()
    again("killed", auto_resume=True).fit()
    one, other = (load(latest(tmp_path / name / "checkpoints")) for name in ("whole", "killed"))
    assert torch.equal(one.weights["model"]["weight"], other.weights["model"]["weight"])
    assert one.training["loss_levels"] == other.training["loss_levels"]
    assert len(one.training["loss_levels"]["loss"]) > 20
    assert one.training["state"] == other.training["state"]
    lines = [[json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
             for name in ("whole", "killed")]  # fmt: skip
    assert [line | {"time": 0} for line in lines[0]] == [line | {"time": 0} for line in lines[1]]


def test_each_of_several_optimizers_has_a_level_of_its_own():
    from tests.trainer.tiny_gan import gan

    _, trainer = gan(batch_size=16, epochs=3)
    trainer.max_loss_ratio, trainer.log_every_n_steps = 1e9, 2
    trainer.fit()
    assert {name: len(usual) for name, usual in trainer.loss_levels.state_dict().items()} == {
        "discriminator_loss": trainer.global_step,
        "generator_loss": trainer.global_step,
    }

"""Schedules: lengths in updates whatever they are called, and the learning rates that come out."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR, ReduceLROnPlateau, StepLR

from tests.trainer.tiny import SGD, VectorTrainer, linear, loader
from trainer.callbacks import LearningRateMonitor
from trainer.schedule import Lengths, injected_lengths, total_updates, updates_per_epoch, warmup_updates
from trainer.state import Every, TrainState
from utils.errors import UserError

LENGTHS = Lengths(total=120, warmup=12, per_epoch=40, epochs=3)


def hf_style(optimizer, num_warmup_steps, num_training_steps): ...
def epochs_style(optimizer, steps_per_epoch, epochs): ...


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (hf_style, {"num_warmup_steps": 12, "num_training_steps": 120}),
        (partial(hf_style, num_warmup_steps=5), {"num_training_steps": 120}),
        (epochs_style, {"steps_per_epoch": 40, "epochs": 3}),
        (partial(OneCycleLR, max_lr=1.0), {"total_steps": 120}),
        (partial(OneCycleLR, max_lr=1.0, epochs=2, steps_per_epoch=7), {}),
        (partial(CosineAnnealingLR), {"T_max": 120}),
        (partial(CosineAnnealingLR, T_max=9), {}),
        (partial(StepLR, step_size=3), {}),
    ],
)
def test_lengths_are_injected_under_the_name_the_signature_has(make, expected):
    assert injected_lengths(make, LENGTHS) == expected


def test_a_schedule_that_needs_a_length_says_so_where_there_is_none():
    with pytest.raises(UserError, match="lr_scheduler: T_max needs a run of known length"):
        injected_lengths(CosineAnnealingLR, Lengths(None, 0, None, None))


def test_arithmetic_of_updates():
    assert [updates_per_epoch(n, 4) for n in (1, 4, 5, 8)] == [1, 1, 2, 2]
    assert total_updates(3, 40, None) == 120
    assert total_updates(3, 40, 50) == 50
    assert total_updates(None, None, None) is None
    assert warmup_updates(None, 0.5, 40) == 20
    with pytest.raises(UserError, match="not both"):
        warmup_updates(1, 1, 40)


def linear_decay(optimizer, num_training_steps):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / num_training_steps)


# items, batch, accumulation, drop_last, epoch_length -> updates in 2 epochs. Worked out by hand; the two-process column
# is in test_two_processes.py.
TABLE = [
    (40, 4, 1, False, None, 20),
    (40, 4, 4, False, None, 6),
    (42, 4, 1, False, None, 22),
    (42, 4, 1, True, None, 20),
    (42, 4, 4, True, None, 6),
    (42, 4, 4, False, 6, 4),
    (42, 4, 1, False, 25, 50),
]


@pytest.mark.parametrize(("items", "batch", "accumulation", "drop_last", "epoch_length", "updates"), TABLE)
def test_the_learning_rate_falls_linearly_to_zero_at_the_last_update(
    items, batch, accumulation, drop_last, epoch_length, updates
):
    rates = []

    class Rates(VectorTrainer):
        def on_before_optimizer_step(self, optimizer):
            rates.append(optimizer.param_groups[0]["lr"])

    trainer = Rates(linear(), loader(items, batch, drop_last=drop_last), SGD, linear_decay, epochs=2,
                    gradient_accumulation_steps=accumulation, epoch_length=epoch_length)  # fmt: skip
    trainer.fit()
    assert trainer.global_step == updates
    assert rates == pytest.approx([0.05 * (1 - k / updates) for k in range(updates)])
    assert trainer.units["model"].learning_rates == [0.0]


def test_warmup_epochs_are_turned_into_updates():
    lengths = {}

    def remember(optimizer, num_warmup_steps, num_training_steps):
        lengths.update(warmup=num_warmup_steps, total=num_training_steps)
        return torch.optim.lr_scheduler.ConstantLR(optimizer)

    VectorTrainer(linear(), loader(40), SGD, remember, epochs=3, warmup_epochs=0.5).fit()
    assert lengths == {"warmup": 5, "total": 30}


def test_a_schedule_per_epoch_steps_once_an_epoch():
    trainer = VectorTrainer(linear(), loader(), SGD, partial(StepLR, step_size=1, gamma=0.5), epochs=3,
                            lr_scheduler_interval="epoch")  # fmt: skip
    trainer.fit()
    assert trainer.units["model"].learning_rates == [0.05 * 0.5**3]


def test_a_schedule_on_a_metric_steps_after_validation_only():
    trainer = VectorTrainer(
        linear(), loader(), partial(torch.optim.SGD, lr=0.0), partial(ReduceLROnPlateau, patience=0, factor=0.5), None,
        loader(8), epochs=4, callbacks=[LearningRateMonitor()],
    )  # fmt: skip
    trainer.fit()
    assert trainer.units["model"].scheduler.num_bad_epochs == 0
    assert trainer.units["model"].scheduler.last_epoch == 4


def test_a_plateau_schedule_names_the_metrics_there_are():
    with pytest.raises(UserError, match=r"no metric 'val/wer', only .*val/loss"):
        VectorTrainer(linear(), loader(), SGD, ReduceLROnPlateau, None, loader(8), epochs=1,
                      lr_scheduler_monitor="val/wer").fit()  # fmt: skip


def test_every():
    state = TrainState(global_step=10)
    assert Every(n_steps=5).is_due(state)
    assert not Every(n_steps=3).is_due(state)
    assert not Every().is_due(state)
    assert not Every(n_epochs=1).is_due(state)
    state.epoch_ended = True
    assert Every(n_epochs=1).is_due(state)
    assert not Every(n_epochs=2).is_due(state)
    with pytest.raises(UserError, match="positive"):
        Every(n_steps=0)
    with pytest.raises(UserError, match="known length"):
        Every(n_epochs=0.5).is_due(state)

"""Schedules with warm-up: the learning rate of every update, and their state."""

import pickle

import pytest
import torch

from components.optim import constant_with_warmup, cosine_with_warmup, linear_with_warmup


def optimizer():
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=1.0)


def rates(make, steps, **lengths):
    schedule = make(optimizer(), **lengths)
    seen = []
    for _ in range(steps):
        seen.append(schedule.get_last_lr()[0])
        schedule.optimizer.step()
        schedule.step()
    return seen


def test_linear_rises_to_the_peak_and_reaches_zero_behind_the_last_update():
    expected = [1 / 3, 2 / 3, 1.0, 0.75, 0.5, 0.25, 0.0]
    assert rates(linear_with_warmup, 7, num_warmup_steps=2, num_training_steps=6) == pytest.approx(expected)


def test_cosine_is_half_way_in_the_middle_and_ends_at_min_ratio():
    seen = rates(cosine_with_warmup, 6, num_warmup_steps=0, num_training_steps=4, min_ratio=0.2)
    assert (seen[0], seen[2], seen[4], seen[5]) == pytest.approx((1.0, 0.6, 0.2, 0.2))


def test_constant_stays_at_the_peak():
    assert rates(constant_with_warmup, 4, num_warmup_steps=1) == [0.5, 1.0, 1.0, 1.0]


def test_a_warm_up_longer_than_the_run_never_divides_by_zero():
    assert rates(linear_with_warmup, 3, num_warmup_steps=9, num_training_steps=3) == pytest.approx([0.1, 0.2, 0.3])


def test_the_state_is_the_step_and_the_length_is_the_configs():
    saved = cosine_with_warmup(optimizer(), num_warmup_steps=1, num_training_steps=4)
    saved.optimizer.step()
    saved.step()
    state = pickle.loads(pickle.dumps(saved.state_dict()))
    longer = cosine_with_warmup(optimizer(), num_warmup_steps=1, num_training_steps=100)
    longer.load_state_dict(state)
    for _ in range(3):
        longer.optimizer.step()
        longer.step()
    assert longer.last_epoch == 4
    assert longer.get_last_lr()[0] > 0.99
    pickle.dumps(longer.lr_lambdas)

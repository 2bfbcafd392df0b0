"""Waveform augmentations that need nothing but the clip, and how they are put together."""

import random

import numpy as np
import pytest
import torch

from components.augment import (
    AddNoise,
    Compose,
    OneOf,
    RandomCrop,
    RandomGain,
    RandomSpeed,
    SpeedPerturb,
    TimeShift,
)
from utils.errors import UserError

RATE = 16_000
STEPS = {
    "gain": RandomGain(),
    "shift": TimeShift(0.02),
    "roll": TimeShift(9.0, True),
    "noise": AddNoise(p=1.0),
    "speed": RandomSpeed(),
    "speeds": SpeedPerturb([0.9, 1.05, 1.1]),
    "crop": RandomCrop(0.03),
    "compose": Compose({"gain": RandomGain(), "crop": RandomCrop(0.03), "none": None}),
    "one_of": OneOf({"gain": RandomGain(), "noise": AddNoise(p=1.0)}),
}
each = pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)


def seed(key):
    """As a loader does before an item is read."""
    random.seed(key)
    np.random.seed(key)
    torch.manual_seed(key)


@pytest.fixture
def waveform():
    return torch.randn(1, 1_000) * 0.1


@each
def test_the_same_key_gives_the_same_clip_whatever_came_before(waveform, step):
    keys = [1, 2, 3, 1, 3, 2]
    made = []
    for key in keys:
        seed(key)
        made.append(step(waveform, RATE))
    for one in range(6):
        for other in range(6):
            if keys[one] == keys[other]:
                assert torch.equal(made[one], made[other])
    assert len({clip.numpy().tobytes() for clip in made}) > 1


@each
@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (1, 481), (2, 700)])
@pytest.mark.parametrize("level", [0.0, 0.3])
def test_a_clip_of_any_shape_stays_finite_float32_and_what_went_in_is_left_alone(step, shape, level):
    clip = torch.randn(shape) * level
    before = clip.clone()
    for key in range(5):
        seed(key)
        made = step(clip, RATE)
        assert made.dtype == torch.float32
        assert made.shape[0] == shape[0]
        assert made.shape[1] >= 1
        assert made.isfinite().all()
    assert torch.equal(clip, before)


@each
def test_the_number_of_threads_changes_nothing(step):
    clip = torch.randn(1, 480_013)
    made, before = [], torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            seed(4)
            made.append(step(clip, RATE))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*made)


def test_lengths_of_augmented_waveforms(waveform):
    assert TimeShift(10.0)(waveform, RATE).shape == waveform.shape
    assert AddNoise(p=1.0)(waveform, RATE).shape == waveform.shape
    assert RandomCrop(0.03)(waveform, RATE).shape == (1, 480)
    assert RandomCrop(3.0)(waveform, RATE).shape == waveform.shape
    assert RandomCrop(3.0, pad_short=True)(waveform, RATE).shape == (1, 48_000)
    assert RandomSpeed(2.0, 2.0)(waveform, RATE).shape == (1, 500)


def test_a_crop_is_taken_from_where_it_is_asked_for():
    ramp = torch.arange(1_000.0).unsqueeze(0)
    assert RandomCrop(0.01, "start")(ramp, RATE)[0, 0] == 0
    assert RandomCrop(0.01, "center")(ramp, RATE)[0, 0] == 420
    starts = {int(RandomCrop(0.01)(ramp, RATE)[0, 0]) for _ in range(200)}
    assert len(starts) > 50
    assert max(starts) <= 840
    padded = RandomCrop(0.1, pad_short=True)(ramp, RATE)
    assert torch.equal(padded[:, :1_000], ramp)
    assert not padded[:, 1_000:].any()


@pytest.mark.parametrize("factor", [0.9, 1.1, 0.5, 2.0])
@pytest.mark.parametrize("length", [1, 5, 16_000, 16_001])
def test_a_speed_divides_the_duration(factor, length):
    assert SpeedPerturb([factor])(torch.randn(2, length), RATE).shape == (2, max(1, round(length / factor)))


def test_a_speed_multiplies_every_frequency_and_adds_none():
    tone = torch.sin(2 * torch.pi * 1_000 * torch.arange(RATE) / RATE).unsqueeze(0)
    faster = SpeedPerturb([1.1])(tone, RATE)
    spectrum = torch.fft.rfft(faster[0] * torch.hann_window(faster.shape[1])).abs()
    hertz = torch.arange(len(spectrum)) * RATE / faster.shape[1]
    assert hertz[spectrum.argmax()].item() == pytest.approx(1_100, abs=2)
    assert spectrum[(hertz - 1_100).abs() > 20].max() < 1e-3 * spectrum.max()
    assert SpeedPerturb([1.0])(tone, RATE) is tone


def test_speeds_are_drawn_alike():
    step, clip = SpeedPerturb(), torch.zeros(1, 990)
    lengths = [step(clip, RATE).shape[1] for _ in range(600)]
    assert {length: lengths.count(length) // 100 for length in set(lengths)}.keys() == {1_100, 990, 900}
    assert min(lengths.count(length) for length in (1_100, 990, 900)) > 150


def test_noise_has_the_ratio_asked_for(waveform):
    noise = AddNoise(10.0, 10.0, p=1.0)(waveform, RATE) - waveform
    snr_db = 10 * torch.log10(waveform.square().mean() / noise.square().mean())
    assert snr_db.item() == pytest.approx(10.0, abs=0.01)


def test_noise_is_between_white_and_brown():
    clip, slopes = torch.ones(1, 64_000), []
    for _ in range(20):
        power = torch.fft.rfft(AddNoise(0, 0, p=1.0)(clip, RATE)[0] - clip[0]).abs().square()[1:32_000]
        octaves = torch.stack([power[2**k : 2 ** (k + 1)].mean() for k in range(6, 14)]).log2()
        slopes.append(-octaves.diff().mean().item())  # 0 is white, 2 is brown
    assert -0.1 < min(slopes) < 0.6
    assert 1.4 < max(slopes) < 2.1


def test_what_is_composed_happens_in_order_or_not_at_all():
    double, add = (lambda x, rate: 2 * x), (lambda x, rate: x + 1)
    one = torch.ones(1, 4)
    assert Compose({"double": double, "add": add})(one, RATE).tolist() == [[3.0] * 4]
    assert Compose([add, None, double])(one, RATE).tolist() == [[4.0] * 4]
    assert Compose({"add": add}, p=0.0)(one, RATE) is one
    seen = [float(Compose({"add": add}, p=0.3)(one, RATE)[0, 0]) for _ in range(1_000)]
    assert seen.count(2.0) == pytest.approx(300, abs=60)


def test_one_of_chooses_by_weight():
    steps = {name: (lambda x, rate, value=value: x * 0 + value) for value, name in enumerate("abcd", start=1)}
    one_of = OneOf(steps | {"b": None}, weights={"a": 2.0, "d": 0.0}, p=0.5)
    clip = torch.zeros(1, 3)
    seen = [int(one_of(clip, RATE)[0, 0]) for _ in range(1_200)]
    assert set(seen) == {0, 1, 3}
    assert seen.count(0) == pytest.approx(600, abs=80)
    assert seen.count(1) == pytest.approx(400, abs=80)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: OneOf({"a": None}), "nothing to choose from"),
        (lambda: OneOf({"a": RandomGain()}, weights={"b": 1.0}), r"weights for \['b'\]"),
        (lambda: Compose([], p=1.5), "p is a probability"),
        (lambda: RandomGain(3, -3), "smallest gain in dB, 3, is above the largest"),
        (lambda: SpeedPerturb([]), "speeds above 0"),
        (lambda: SpeedPerturb([0.0, 1.0]), "speeds above 0"),
        (lambda: RandomCrop(0.0), "is none"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, sentence):
    with pytest.raises(UserError, match=sentence):
        make()

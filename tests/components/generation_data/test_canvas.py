"""Level and canvas of a target."""

import numpy as np
import pytest
import torch

from components.data.generation import FixedCanvas, NoiseFloor, NormalizeLevel, SpectralTilt
from tests.components.generation_data.sounds import HOP, RATE, buzz
from utils.errors import BadSample, UserError


def test_the_level_is_that_of_what_sounds_and_silence_stays():
    tone = buzz(200)
    padded = torch.nn.functional.pad(0.01 * tone, (0, 8000))
    level = NormalizeLevel(0.1)
    assert level(tone, RATE).square().mean().sqrt() == pytest.approx(0.1, rel=0.01)
    assert torch.allclose(level(padded, RATE)[:, :4000], level(tone, RATE), rtol=1e-3, atol=1e-4)
    assert torch.equal(level(torch.zeros(1, 800), RATE), torch.zeros(1, 800))


def test_a_canvas_pads_crops_at_its_steps_or_refuses():
    canvas = FixedCanvas(0.1, multiple_of=HOP)
    assert torch.equal(canvas(torch.ones(1, 500), RATE), torch.nn.functional.pad(torch.ones(1, 500), (0, 300)))
    torch.manual_seed(0)
    ramp, starts = torch.arange(4000.0).unsqueeze(0), set()
    for _ in range(50):
        piece, start = canvas.fit(ramp, RATE)
        assert torch.equal(piece, ramp[:, start : start + 800])
        starts.add(start)
    assert len(starts) > 20
    assert all(start % HOP == 0 for start in starts)
    assert max(starts) <= 3200
    assert FixedCanvas(0.1, place="center").fit(ramp, RATE)[1] == 1600
    assert FixedCanvas(0.1, place="start").fit(ramp, RATE)[1] == 0
    assert FixedCanvas(0.1, pad_short=False)(torch.ones(1, 500), RATE).shape == (1, 500)
    with pytest.raises(BadSample, match=r"0\.50 s does not fit on a canvas of 0\.1 s"):
        FixedCanvas(0.1, too_long="refuse")(ramp, RATE)
    with pytest.raises(UserError, match="no canvas"):
        FixedCanvas(0.0)


def test_the_floor_of_noise_is_the_same_for_every_clip():
    floor = NoiseFloor(0.001)
    noise = floor(torch.zeros(1, 4000), RATE)
    assert noise.std() == pytest.approx(0.001, rel=0.05)
    assert torch.equal(floor(torch.ones(1, 4000), RATE), 1 + noise)


def test_a_tilt_turns_the_spectrum_about_one_kilohertz(monkeypatch):
    monkeypatch.setattr("components.data.generation.tilt.uniform", lambda low, high: high)
    time = torch.arange(RATE).unsqueeze(0) / RATE
    for hertz, decibels in ((500, -3.0), (1000, 0.0), (2000, 3.0)):
        tone = torch.sin(2 * np.pi * hertz * time)
        tilted = SpectralTilt(3.0)(tone, RATE)
        assert 20 * torch.log10(tilted.std() / tone.std()) == pytest.approx(decibels, abs=0.05)

"""Curves of energy and pitch."""

import numpy as np
import pytest
import torch

from components.data.audio import load_audio
from components.data.generation import Contour, EnergyCurve, PitchCurve
from components.metrics.pitch import YinPitch
from tests.components.generation_data.sounds import HOP, RATE, SPEECH, buzz, clip_of


def test_energy_is_in_decibels_from_the_floor_to_full_scale():
    waveform = torch.cat([torch.ones(1, 800), 0.1 * torch.ones(1, 800), torch.zeros(1, 850)], dim=1)
    curve = EnergyCurve(HOP, floor_db=-40.0)(waveform, RATE)
    assert curve.shape == (31,)
    assert curve[2:8].tolist() == pytest.approx([1.0] * 6, abs=1e-4)
    assert curve[12:18].tolist() == pytest.approx([0.5] * 6, abs=1e-3)
    assert curve[22:].tolist() == [0.0] * 9


@pytest.mark.parametrize("rate", [8000, 16_000])
@pytest.mark.parametrize("hertz", [75, 120, 210, 330])
def test_pitch_of_a_steady_voice_is_found_to_a_percent(hertz, rate):
    curve = PitchCurve(rate // 100)
    found = curve.hertz(buzz(hertz, rate=rate), rate)
    assert len(found) == 50
    assert (found[3:-4] / hertz).sub(1).abs().max() < 0.01
    share = curve(buzz(hertz, rate=rate), rate)
    assert share[10] == pytest.approx(0.2 + 0.8 * np.log(hertz / 60) / np.log(400 / 60), abs=0.01)


def test_pitch_follows_a_glide_and_is_zero_where_there_is_none():
    torch.manual_seed(0)
    glide = buzz(np.linspace(100, 250, 4000))
    waveform = torch.cat([glide, 0.05 * torch.randn(1, 4000), torch.zeros(1, 4000)], dim=1)
    found = PitchCurve(HOP).hertz(waveform, RATE)
    middle = torch.linspace(100, 250, 4000)[40::HOP]
    assert (found[3:46] / middle[3:46]).sub(1).abs().max() < 0.03
    assert (found[54:] > 0).float().mean() < 0.1
    assert found[102:].tolist() == [0.0] * 48


@pytest.mark.skipif(not (SPEECH / "librispeech").is_dir(), reason="needs the shared speech")
def test_pitch_of_speech_agrees_with_another_method():
    waveform = load_audio(SPEECH / "librispeech" / "2412-153948-0000.flac", 16_000)
    own = PitchCurve(160).hertz(waveform, 16_000).numpy()
    centred = np.pad(waveform[0].numpy()[80:], (0, 80))  # its frames are centred where ours begin
    theirs = YinPitch().track(centred, 16_000)[: len(own)]
    both = (own > 0) & (theirs > 0)
    assert both.sum() > 0.9 * (theirs > 0).sum()
    assert (np.abs(own[both] / theirs[both] - 1) < 0.05).mean() > 0.95


def test_curves_stand_side_by_side_at_the_latent_rate():
    made = Contour({"energy": EnergyCurve(HOP), "pitch": PitchCurve(HOP), "none": None})
    assert made.kinds == {"contour": 2}
    contour = made(clip_of(buzz(200, 0.5)))["contour"]
    assert contour.shape == (50, 2)
    assert contour.dtype == torch.float32

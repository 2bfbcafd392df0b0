import numpy as np
import pytest

from components.metrics import Clip, ContourCorrelation, F0Correlation, F0Rmse, VoicingError, WorldPitch, YinPitch
from components.metrics.pitch import energy_contour
from tests.components.metric_clips import RATE, silence, tone


def singing(pitch, rate=RATE, name="a", level=0.1):
    """A harmonic tone of a pitch curve in Hz, a value a sample; 0 is a pause."""
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    samples = sum(np.sin(k * phase) / k for k in range(1, 6)) * level * (pitch > 0)
    samples = samples + 1e-4 * np.random.default_rng(0).standard_normal(len(pitch))
    return Clip(name, samples.astype(np.float32), rate)


TIME = np.arange(RATE) / RATE
CURVE = 150 + 40 * np.sin(2 * np.pi * TIME)


@pytest.mark.parametrize("hertz", [75.0, 120.0, 233.0, 440.0])
def test_yin_hears_a_tone_to_a_few_cents(hertz):
    pitch = YinPitch().track(singing(np.full(RATE, hertz)).samples, RATE)
    inner = pitch[5:-5]
    assert np.abs(1200 * np.log2(inner / hertz)).max() < 10


def test_yin_follows_a_curve_and_hears_no_voice_in_noise_and_silence():
    pitch = YinPitch().track(singing(CURVE).samples, RATE)
    assert len(pitch) == 1 + RATE // 80
    cents = 1200 * np.log2(pitch[5:-5] / CURVE[::80][5 : len(pitch) - 5])
    assert np.sqrt(np.square(cents).mean()) < 25
    noise = 0.1 * np.random.default_rng(0).standard_normal(RATE)
    assert (YinPitch().track(noise, RATE) > 0).mean() < 0.05
    assert not YinPitch().track(np.zeros(RATE), RATE).any()


def test_yin_and_world_agree():
    pytest.importorskip("pyworld")
    clip = singing(CURVE)
    ours, theirs = (tracker.track(clip.samples, RATE) for tracker in (YinPitch(), WorldPitch()))
    assert len(ours) == len(theirs)
    both = (ours > 0) & (theirs > 0)
    assert both.mean() > 0.9
    assert np.median(np.abs(1200 * np.log2(ours[both] / theirs[both]))) < 20


def test_a_tone_shorter_than_a_frame_has_a_pitch_track():
    assert len(YinPitch().track(tone(seconds=0.005).samples, RATE)) == 1


@pytest.mark.parametrize(("in_cents", "expected"), [(True, 100.0), (False, 150 * (2 ** (1 / 12) - 1))])
def test_f0_rmse_of_a_semitone(in_cents, expected):
    metric = F0Rmse(in_cents=in_cents)
    metric.update([singing(np.full(RATE, 150 * 2 ** (1 / 12)))], [singing(np.full(RATE, 150.0))])
    result = metric.compute()
    assert result.value == pytest.approx(expected, rel=0.05)
    assert result.unit == ("cents" if in_cents else "Hz")


def test_f0_correlation_is_numpys_and_knows_a_melody_in_another_voice():
    same, opposite = F0Correlation(), F0Correlation()
    same.update([singing(1.5 * CURVE)], [singing(CURVE)])
    opposite.update([singing(300 - CURVE)], [singing(CURVE)])
    assert same.compute().value > 0.98
    assert opposite.compute().value < -0.95
    a, b = np.array([100.0, 120, 0, 150, 140, 90]), np.array([110.0, 100, 100, 160, 150, 95])
    both = a > 0
    expected = np.corrcoef(np.log(a[both]), np.log(b[both]))[0, 1]
    assert same.compare(a, b) == pytest.approx(expected)


def test_voicing_error_counts_frames():
    metric = VoicingError()
    half = np.where(TIME < 0.5, 150.0, 0.0)
    metric.update([singing(half)], [singing(np.full(RATE, 150.0))])
    assert metric.compute().value == pytest.approx(0.5, abs=0.05)


def test_clips_without_a_voice_are_counted():
    metric = F0Rmse()
    hiss = Clip("hiss", 0.1 * np.random.default_rng(0).standard_normal(RATE).astype(np.float32), RATE)
    metric.update([hiss, silence("quiet", 1.0)], [singing(CURVE), singing(CURVE)])
    assert metric.compute().num_skipped == {"fewer than 5 frames voiced in both": 1, "silent output": 1}


def test_pitch_metrics_look_at_a_clip_once():
    class Counting(YinPitch):
        calls = 0

        def track(self, samples, sample_rate):
            Counting.calls += 1
            return super().track(samples, sample_rate)

    one, other = singing(CURVE), singing(CURVE)
    for metric in (F0Rmse(Counting()), F0Correlation(Counting()), VoicingError(Counting())):
        metric.update([one], [other])
    assert Counting.calls == 2


def test_contour_correlation_hears_a_swell():
    swell = (0.2 + np.sin(np.pi * TIME)).astype(np.float32)
    base = np.float32(0.1) * np.random.default_rng(0).standard_normal((2, RATE)).astype(np.float32)
    metric = ContourCorrelation()
    metric.update([Clip("with", base[0] * swell, RATE)], [Clip("with", base[1] * swell, RATE)])
    metric.update([Clip("against", base[0] / swell, RATE)], [Clip("against", base[1] * swell, RATE)])
    scores = metric.compute().per_item
    assert scores["with"] > 0.9
    assert scores["against"] < -0.9


def test_energy_contour_is_in_decibels_and_has_a_lowest():
    samples = np.concatenate([np.full(160, 0.1), np.full(160, 0.01), np.zeros(160)])
    assert energy_contour(samples, RATE, 0.02) == pytest.approx([-20, -40, -80])

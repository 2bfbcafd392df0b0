"""What a source is made of its target."""

import pytest
import torch

from components.augment import AddNoise, RandomSpeed
from components.data.generation import Degraded, InPainting, SuperResolution
from tests.components.generation_data.sounds import HOP, RATE, buzz, clip_of
from utils.errors import UserError


def band_db(waveform, low, high):
    power = torch.fft.rfft(waveform[0]).abs().square()
    hertz = torch.fft.rfftfreq(waveform.shape[-1], 1 / RATE)
    return 10 * torch.log10(power[(hertz >= low) & (hertz < high)].sum() + 1e-9)


def test_super_resolution_takes_the_upper_band_and_leaves_the_rest_in_its_place():
    torch.manual_seed(0)
    target = 0.1 * torch.randn(1, 4001)
    source = SuperResolution([4000])(clip_of(target))["source_waveform"]
    assert source.shape == target.shape
    assert source.dtype == torch.float32
    assert band_db(source, 2200, 4000) < band_db(target, 2200, 4000) - 40
    assert band_db(source - target, 100, 1700) < band_db(target, 100, 1700) - 30
    with pytest.raises(UserError, match="8000 Hz"):
        SuperResolution([8000])(clip_of(target))


def test_in_painting_silences_the_frames_of_its_mask_within_what_sounds():
    target = torch.nn.functional.pad(torch.ones(1, 3000), (0, 2600))
    task, sizes = InPainting(HOP, 0.1, 0.2), set()
    for seed in range(40):
        torch.manual_seed(seed)
        made = task(clip_of(target))
        mask = made["mask"]
        hidden = mask.repeat_interleave(HOP).bool()
        assert mask.shape == (70,)
        assert torch.equal(made["source_waveform"][0], target[0].masked_fill(hidden, 0))
        filled = torch.nonzero(mask).flatten()
        assert torch.equal(filled, torch.arange(filled[0], filled[-1] + 1))
        assert filled[-1] < 38
        sizes.add(len(filled))
    assert min(sizes) >= 10
    assert max(sizes) <= 20
    assert len(sizes) > 5
    tiny = task(clip_of(torch.ones(1, 100)))
    assert torch.equal(tiny["mask"], torch.ones(2))


def test_a_degraded_source_stays_aligned_and_has_the_ratio_asked_for():
    torch.manual_seed(0)
    target = buzz(150)
    source = Degraded({"noise": AddNoise(5.0, 5.0, p=1.0), "none": None})(clip_of(target))["source_waveform"]
    noise = source - target
    assert 10 * torch.log10(target.square().mean() / noise.square().mean()) == pytest.approx(5.0, abs=0.01)
    with pytest.raises(UserError, match="no longer aligned"):
        Degraded({"speed": RandomSpeed(0.5, 0.6)})(clip_of(target))
    with pytest.raises(UserError, match="without a step"):
        Degraded({"noise": None})

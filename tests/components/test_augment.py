import pytest
import torch

from components.augment import AddNoise, RandomCrop, RandomGain, RandomSpeed, SpecAugment, TimeShift
from components.augment.spec_augment import hash_uniform

SPEC = {"num_time_masks": 2, "max_time_width": 10, "max_time_share": 0.3, "num_mel_masks": 1, "max_mel_width": 5}


@pytest.fixture
def waveform():
    return torch.randn(1, 1_000) * 0.1


@pytest.mark.parametrize(
    "augmentation",
    [RandomGain(), TimeShift(0.02), TimeShift(9.0, True), AddNoise(p=1.0), RandomSpeed(), RandomCrop(0.03)],
)
def test_waveform_augmentations_follow_the_generator(waveform, augmentation):
    torch.manual_seed(1)
    first, second = augmentation(waveform, 16_000), augmentation(waveform, 16_000)
    torch.manual_seed(1)
    assert torch.equal(augmentation(waveform, 16_000), first)
    assert first.shape != second.shape or not torch.equal(first, second)
    assert first.isfinite().all()


def test_lengths_of_augmented_waveforms(waveform):
    assert TimeShift(10.0)(waveform, 16_000).shape == waveform.shape
    assert AddNoise(p=1.0)(waveform, 16_000).shape == waveform.shape
    assert RandomCrop(0.03)(waveform, 16_000).shape == (1, 480)
    assert RandomCrop(3.0)(waveform, 16_000).shape == waveform.shape
    assert RandomSpeed(2.0, 2.0)(waveform, 16_000).shape == (1, 500)


def test_noise_has_the_ratio_asked_for(waveform):
    noise = AddNoise(10.0, 10.0, p=1.0)(waveform, 16_000) - waveform
    snr_db = 10 * torch.log10(waveform.square().mean() / noise.square().mean())
    assert snr_db.item() == pytest.approx(10.0, abs=0.01)
    assert AddNoise(p=1.0)(torch.zeros(1, 100), 16_000).isfinite().all()


def test_hash_is_uniform_and_depends_on_seed_and_draw_alone():
    draws = hash_uniform(torch.arange(2_000), 8)
    assert draws.min() >= 0
    assert draws.max() < 1
    assert draws.mean().item() == pytest.approx(0.5, abs=0.01)
    assert draws.std().item() == pytest.approx(12**-0.5, abs=0.01)
    assert torch.corrcoef(draws.T).fill_diagonal_(0).abs().max() < 0.1
    assert torch.equal(hash_uniform(torch.tensor([7, 1999]), 3)[1], draws[1999, :3])


def test_spec_augment_is_a_function_of_the_seed_not_of_the_batch():
    augment, features, lens = SpecAugment(**SPEC), torch.randn(8, 100, 20), torch.full((8,), 100)
    seed = torch.arange(8) * 10**12
    masked = augment(features, lens, seed)
    assert torch.equal(masked, augment(features, lens, seed))
    torch.testing.assert_close(augment(features[3:4], lens[3:4], seed[3:4]), masked[3:4])
    assert not torch.equal(masked, augment(features, lens, seed + 1))


def test_spec_augment_respects_lengths_widths_and_the_mean():
    lens = torch.tensor([100, 40, 1] * 50)
    features = torch.randn(150, 100, 20) * (torch.arange(100) < lens[:, None])[:, :, None]
    masked = SpecAugment(**SPEC)(features, lens, torch.arange(150))
    changed = masked != features
    for i, length in enumerate(lens.tolist()):
        assert not changed[i, length:].any()
        assert changed[i].all(dim=1).sum() <= 2 * min(10, 0.3 * length)
        assert changed[i, :length].all(dim=0).sum() <= 5
        torch.testing.assert_close(masked[i][changed[i]], features[i, :length].mean().expand(changed[i].sum()))
    assert changed.any()


def test_spec_augment_leaves_evaluation_and_the_unlucky_alone():
    features, lens, seed = torch.randn(4, 50, 20), torch.full((4,), 50), torch.arange(4)
    assert torch.equal(SpecAugment(**SPEC).eval()(features, lens, seed), features)
    assert torch.equal(SpecAugment(**SPEC)(features, lens, None), features)
    assert torch.equal(SpecAugment(**SPEC, p=0.0)(features, lens, seed), features)

"""Augmentations of features: functions of each clip's seed, the same alone and in any padded batch."""

import math
from itertools import pairwise

import pytest
import torch

from components.augment import FeatureCompose, FilterAugment, SpecAugment
from components.augment.keyed import hash_uniform, stream
from components.augment.spec_augment import time_warp

SPEC = {"num_time_masks": 2, "max_time_width": 10, "max_time_share": 0.3, "num_mel_masks": 1, "max_mel_width": 5}
NO_MASKS = {"num_time_masks": 0, "num_mel_masks": 0}
MODULES = {
    "masks": SpecAugment(**SPEC),
    "warp": SpecAugment(**NO_MASKS, max_time_warp=20),
    "masks and warp": SpecAugment(**SPEC, max_time_warp=20, p=0.7),
    "linear filter": FilterAugment(p=0.8, min_width=2),
    "step filter": FilterAugment(kind="step", min_width=2),
    "several": FeatureCompose({"filter": FilterAugment(min_width=2), "mask": SpecAugment(**SPEC), "none": None}),
}
each = pytest.mark.parametrize("augment", MODULES.values(), ids=MODULES)


def padded(lens, size, num_mels=20):
    features = torch.randn(len(lens), size, num_mels)
    return features * (torch.arange(size) < torch.tensor(lens)[:, None])[:, :, None], torch.tensor(lens)


def test_hash_is_uniform_and_depends_on_seed_and_draw_alone():
    draws = hash_uniform(torch.arange(2_000), 8)
    assert draws.min() >= 0
    assert draws.max() < 1
    assert draws.mean().item() == pytest.approx(0.5, abs=0.01)
    assert draws.std().item() == pytest.approx(12**-0.5, abs=0.01)
    assert torch.corrcoef(draws.T).fill_diagonal_(0).abs().max() < 0.1
    assert torch.equal(hash_uniform(torch.tensor([7, 1999]), 3)[1], draws[1999, :3])
    other = hash_uniform(torch.arange(2_000) ^ stream("other"), 8)
    assert torch.corrcoef(torch.cat((draws, other), 1).T).fill_diagonal_(0).abs().max() < 0.1


@each
def test_a_clip_is_augmented_alike_alone_and_in_any_padded_batch(augment):
    lens = [100, 63, 40, 7, 3, 1]
    features, feature_lens = padded(lens, 100)
    seed = torch.arange(6) * 10**12 + 5
    together = augment(features, feature_lens, seed)
    wider = augment(torch.nn.functional.pad(features, (0, 0, 0, 31)), feature_lens, seed)
    order = [4, 0, 3, 5, 2, 1]
    shuffled = augment(features[order], feature_lens[order], seed[order])
    for i, length in enumerate(lens):
        alone = augment(features[i : i + 1, :length], feature_lens[i : i + 1], seed[i : i + 1])[0]
        torch.testing.assert_close(alone, together[i, :length])
        torch.testing.assert_close(alone, wider[i, :length])
        torch.testing.assert_close(alone, shuffled[order.index(i), :length])
        assert torch.equal(together[i, length:], features[i, length:])
    assert not wider[:, 100:].any()


@each
def test_another_seed_is_another_augmentation_and_the_same_is_the_same(augment):
    features, lens = padded([80] * 8, 80)
    seed = torch.arange(8)
    assert torch.equal(augment(features, lens, seed), augment(features, lens, seed))
    assert not torch.equal(augment(features, lens, seed), augment(features, lens, seed + 8))


@each
def test_evaluation_and_clips_without_a_seed_are_left_alone(augment):
    features, lens = padded([50] * 4, 50)
    assert torch.equal(augment(features, lens, None), features)
    try:
        assert torch.equal(augment.eval()(features, lens, torch.arange(4)), features)
    finally:
        augment.train()


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtype_and_shape_stay_and_silence_stays_finite(augment, dtype):
    lens = torch.tensor([30, 1, 2])
    made = augment(torch.zeros(3, 30, 20, dtype=dtype), lens, torch.tensor([1, 2, 2**62]))
    assert made.dtype == dtype
    assert made.shape == (3, 30, 20)
    assert made.isfinite().all()


def test_no_clip_is_changed_at_probability_zero():
    features, lens = padded([50] * 4, 50)
    for augment in (SpecAugment(**SPEC, max_time_warp=9, p=0.0), FilterAugment(p=0.0)):
        assert torch.equal(augment(features, lens, torch.arange(4)), features)


def test_masks_respect_lengths_widths_and_the_mean():
    features, lens = padded([100, 40, 1] * 50, 100)
    masked = SpecAugment(**SPEC)(features, lens, torch.arange(150))
    changed = masked != features
    for i, length in enumerate(lens.tolist()):
        assert not changed[i, length:].any()
        assert changed[i].all(dim=1).sum() <= 2 * min(10, 0.3 * length)
        assert changed[i, :length].all(dim=0).sum() <= 5
        torch.testing.assert_close(masked[i][changed[i]], features[i, :length].mean().expand(changed[i].sum()))
    assert changed.any()


def test_a_warp_changes_no_mask():
    """The masks of a seed are those it had before warps came: published numbers stay."""
    features, lens = torch.ones(20, 60, 10), torch.full((20,), 60)
    features[:, 0] = 5  # so that the mean is not what the rest is
    seed = torch.arange(20)
    without, with_warp = (SpecAugment(**SPEC, max_time_warp=w)(features, lens, seed) for w in (0, 10))
    both = (without != 1) & (torch.arange(60) > 12).view(1, -1, 1)
    assert torch.equal(both, (with_warp != 1) & (torch.arange(60) > 12).view(1, -1, 1))


def test_a_warp_moves_one_point_by_at_most_w_and_keeps_the_ends():
    lens = torch.tensor([200, 100, 40] * 100)
    ramp = (torch.arange(200.0).view(1, -1, 1) * torch.ones(300, 1, 4)).contiguous()
    ramp[torch.arange(200) >= lens[:, None]] = -1e6  # padding, which must not be mixed in
    warped = time_warp(ramp, lens, 15, hash_uniform(torch.arange(300), 2), torch.ones(300, dtype=torch.bool))
    moved = []
    for clip, length in zip(warped[:, :, 0], lens.tolist()):
        inside = clip[:length]
        assert inside[0] == 0
        assert inside[-1] == pytest.approx(length - 1)
        assert (inside.diff() > -1e-3).all()
        moved.append((inside - torch.arange(float(length))).abs().max().item())
        assert moved[-1] <= min(15, 0.2 * (length - 1)) * 1.01 + 0.01
        assert (clip[length:] == -1e6).all()
    assert max(moved) > 10


def test_a_warp_bends_at_the_drawn_point_alone():
    ramp, chosen = torch.arange(101.0).view(1, -1, 1), torch.tensor([True])
    draws = torch.tensor([[0.5, 0.75]])  # the middle, moved by half of W = 20
    warped = time_warp(ramp, torch.tensor([101]), 30, draws, chosen)[0, :, 0]
    expected = torch.cat((torch.linspace(0, 50, 61), torch.linspace(50, 100, 41)[1:]))
    torch.testing.assert_close(warped, expected)


@pytest.mark.parametrize("kind", ["linear", "step"])
def test_a_filter_is_one_curve_of_gains_over_the_mels_of_a_clip(kind):
    features, lens = padded([60, 30] * 100, 60, 64)
    augment = FilterAugment(-6.0, 4.0, 3, 6, 6, kind)
    gain_db = (augment(features, lens, torch.arange(200)) - features) * 10 / math.log(10)
    num_jumps = []
    for gain, length in zip(gain_db, lens.tolist()):
        torch.testing.assert_close(gain[:length], gain[:1].expand(length, -1), atol=1e-4, rtol=1e-4)
        assert gain.min() >= -6.001
        assert gain.max() <= 4.001
        # A straight line has no second difference; a step has two for each edge.
        edges = (gain[0].diff().abs() > 1e-3) if kind == "step" else (gain[0].diff().diff().abs() > 1e-3)
        num_jumps.append(int(edges.sum()))
        if kind == "step":
            places = [0, *(edges.nonzero()[:, 0] + 1).tolist(), 64]
            assert min(b - a for a, b in pairwise(places)) >= 6
    assert max(num_jumps) == 5
    assert sorted(set(num_jumps))[-4:] == [2, 3, 4, 5]


def test_a_filter_makes_do_with_few_mels():
    features, lens = padded([10] * 20, 10, 7)
    gain = FilterAugment(min_width=6, kind="step")(features, lens, torch.arange(20)) - features
    torch.testing.assert_close(gain, gain[:, :1, :1].expand_as(gain))


def test_steps_of_a_composition_draw_for_themselves():
    features, lens = padded([60] * 30, 60)
    seed = torch.arange(30)
    one = {"first": SpecAugment(**SPEC)}
    both = FeatureCompose(one | {"second": SpecAugment(**SPEC)})(features, lens, seed)
    assert (both != features).sum() > (FeatureCompose(one)(features, lens, seed) != features).sum() * 1.3
    removed = FeatureCompose({"second": None} | one)(features, lens, seed)
    assert torch.equal(removed, FeatureCompose(one)(features, lens, seed))

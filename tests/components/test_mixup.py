"""Mixup of a collated batch."""

import pytest
import torch

from components.augment import CollateThen, Mixup
from components.augment.mixup import mix_in_time
from components.data import PadCollate
from utils.errors import UserError

LENS = [12, 5, 9, 1]


def make_batch(seeds=(3, 14, 15, 92), num=4):
    items = [
        {"waveform": torch.full((1, LENS[i]), float(i + 1)), "targets": {"word": i % 3}, "seed": seeds[i]}
        for i in range(num)
    ]
    return PadCollate()(items)


def test_a_clip_keeps_its_length_and_gets_a_cut_or_repeated_partner():
    values, lens = torch.zeros(3, 1, 7), torch.tensor([7, 3, 0])
    values[0, 0], values[1, 0, :3] = torch.arange(1.0, 8), torch.tensor([10.0, 20.0, 30.0])
    mixed = mix_in_time(values, lens, torch.tensor([1, 0, 0]), torch.tensor([0.75, 0.5, 0.5]), -1)
    expected = 0.75 * torch.arange(1.0, 8) + 0.25 * torch.tensor([10.0, 20, 30, 10, 20, 30, 10])
    torch.testing.assert_close(mixed[0, 0], expected)
    torch.testing.assert_close(mixed[1, 0], torch.tensor([5.5, 11, 16.5, 0, 0, 0, 0]))
    assert not mixed[2].any()


def test_labels_are_mixed_as_the_clips_are():
    batch = make_batch()
    mixed = Mixup({"word": 3}, alpha=1.0)(batch)
    share, partner = mixed["mixup_share"], mixed["mixup_partner"]
    assert sorted(partner.tolist()) == [0, 1, 2, 3]
    for i in range(4):
        j = int(partner[i])
        assert j != i
        assert 0.5 <= share[i] <= 1
        expected = share[i] * (i + 1) + (1 - share[i]) * (j + 1)
        torch.testing.assert_close(mixed["waveform"][i, 0, : LENS[i]], expected.expand(LENS[i]))
        assert not mixed["waveform"][i, 0, LENS[i] :].any()
        target = torch.zeros(3)
        target[i % 3] += share[i]
        target[j % 3] += 1 - share[i]
        torch.testing.assert_close(mixed["targets"]["word"][i], target)
    assert torch.equal(batch["targets"]["word"], torch.tensor([0, 1, 2, 0]))
    assert torch.equal(mixed["audio_lens"], batch["audio_lens"])


def test_mixtures_depend_on_the_seeds_and_not_on_the_order_of_the_batch():
    batch, order = make_batch(), torch.tensor([2, 0, 3, 1])
    shuffled = {
        "waveform": batch["waveform"][order],
        "audio_lens": batch["audio_lens"][order],
        "targets": {"word": batch["targets"]["word"][order]},
        "seed": batch["seed"][order],
    }
    mixup = Mixup({"word": 3}, alpha=1.0)
    one, other = mixup(batch), mixup(shuffled)
    assert torch.equal(one["waveform"][order], other["waveform"])
    assert torch.equal(one["targets"]["word"][order], other["targets"]["word"])
    assert not torch.equal(one["waveform"], mixup(make_batch((1, 2, 3, 4)))["waveform"])


@pytest.mark.parametrize("alpha", [0.1, 0.4, 1.0, 3.0, 50.0])
def test_shares_are_of_the_beta_distribution(alpha):
    mixup = Mixup(alpha=alpha)
    drawn = mixup._share(torch.linspace(0, 1, 20_001)[:-1])
    torch.manual_seed(0)
    expected = torch.distributions.Beta(alpha, alpha).sample((200_000,))
    expected = torch.maximum(expected, 1 - expected)
    assert drawn.min() >= 0.5
    assert drawn.max() <= 1
    quantiles = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])
    torch.testing.assert_close(drawn.quantile(1 - quantiles), expected.quantile(1 - quantiles), atol=5e-3, rtol=0)


def test_features_are_mixed_along_their_frames():
    features, lens = torch.randn(3, 8, 5), torch.tensor([8, 6, 2])
    features *= (torch.arange(8) < lens[:, None]).unsqueeze(2)
    batch = {"features": features, "feature_lens": lens, "seed": torch.arange(3)}
    mixed = Mixup(field="features")(batch)
    for i in range(3):
        j, share = int(mixed["mixup_partner"][i]), mixed["mixup_share"][i]
        other = features[j][torch.arange(8) % lens[j]]
        expected = (share * features[i] + (1 - share) * other)[: lens[i]]
        torch.testing.assert_close(mixed["features"][i, : lens[i]], expected)
        assert not mixed["features"][i, lens[i] :].any()
    assert "targets" not in mixed


def test_an_unknown_class_adds_nothing_and_many_hot_targets_are_mixed_as_they_are():
    batch = make_batch()
    batch["targets"] = {"word": torch.tensor([-100, 1, 2, 0]), "tags": torch.tensor([[1, 1], [0, 1], [0, 0], [1, 0]])}
    mixed = Mixup({"word": 3})(batch)
    share, partner = mixed["mixup_share"], mixed["mixup_partner"]
    assert mixed["targets"]["word"][0].sum().item() == pytest.approx(1 - share[0].item())
    tags = batch["targets"]["tags"].float()
    torch.testing.assert_close(mixed["targets"]["tags"], torch.lerp(tags[partner], tags, share[:, None]))


def test_nothing_is_mixed_in_evaluation_at_probability_zero_or_alone():
    batch = make_batch()
    assert Mixup({"word": 3}).eval()(batch)["targets"] is batch["targets"]
    for mixed in (Mixup({"word": 3}, p=0.0)(batch), Mixup({"word": 3})(make_batch(num=1))):
        assert torch.equal(mixed["waveform"], batch["waveform"][: len(mixed["waveform"])])
        assert mixed["targets"]["word"].max(dim=1).values.tolist() == [1.0] * len(mixed["waveform"])


def test_a_target_without_a_number_of_classes_is_one_sentence():
    with pytest.raises(UserError, match=r"num_classes has no 'word'"):
        Mixup({"speaker": 3})(make_batch())
    with pytest.raises(UserError, match="alpha is above 0"):
        Mixup(alpha=0.0)


def test_batches_can_be_mixed_where_they_are_collated():
    items = [{"waveform": torch.ones(1, 3), "targets": {"word": i}, "seed": i} for i in range(3)]
    collate = CollateThen(PadCollate(), {"mixup": Mixup({"word": 3}), "none": None})
    assert collate(items)["targets"]["word"].shape == (3, 3)

from functools import partial

import pytest
import torch
from torch import nn

from components.augment import SpecAugment
from components.features import LogMel
from components.layers import MaskedBatchNorm, length_mask
from components.losses import MultiTargetCrossEntropy
from components.models.tagger import Cnn6, ConvNet, PoolingHead, Tagger, TaggerOutput

NUM_CLASSES = {"word": 4, "speaker": 3}
BACKBONES = {
    "conv_net": partial(ConvNet, channels=[4, 8, 8]),
    "cnn6": partial(Cnn6, channels=[4, 8, 8, 8]),
}


def make_tagger(backbone, **options):
    torch.manual_seed(0)
    head = partial(PoolingHead, hidden_dim=16)
    tagger = Tagger(LogMel(8_000, 256, 80, 20), BACKBONES[backbone], head, NUM_CLASSES, **options)
    for norm in tagger.modules():  # statistics as after some training
        if isinstance(norm, MaskedBatchNorm):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2.0)
            nn.init.normal_(norm.bias)
    return tagger


@pytest.fixture
def batch():
    audio_lens = torch.tensor([4_000, 1, 90, 2_345, 1_280])
    waveform = 0.1 * torch.randn(5, 1, 4_000) * length_mask(audio_lens, 4_000).unsqueeze(1)
    return waveform, audio_lens


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_padded_batch_gives_the_same_as_each_item_alone(backbone, batch):
    tagger, (waveform, audio_lens) = make_tagger(backbone).eval(), batch
    together = tagger(waveform, audio_lens)
    assert together.logits["word"].shape == (5, 4)
    assert together.logits["speaker"].shape == (5, 3)
    for i, length in enumerate(audio_lens.tolist()):
        alone = tagger(waveform[i : i + 1, :, :length], audio_lens[i : i + 1])
        for target in NUM_CLASSES:
            torch.testing.assert_close(together.logits[target][i], alone.logits[target][0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(together.embedding[i], alone.embedding[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_more_padding_changes_neither_training_statistics_nor_gradients(backbone, batch):
    waveform, audio_lens = batch
    results = []
    for extra in (0, 3_000):
        tagger = make_tagger(backbone).train()
        for module in tagger.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        output = tagger(nn.functional.pad(waveform, (0, extra)), audio_lens)
        output.logits["word"].square().sum().backward()
        gradients = {name: p.grad for name, p in tagger.named_parameters() if p.grad is not None}
        results.append(gradients | dict(tagger.named_buffers()))
    assert results[0].keys() == results[1].keys()
    for name, value in results[0].items():
        torch.testing.assert_close(value, results[1][name], atol=1e-4, rtol=1e-4, msg=name)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_gradient_checkpointing_changes_no_gradient(backbone, batch):
    gradients = []
    for checkpointing in (False, True):
        tagger = make_tagger(backbone).train()
        if checkpointing:
            tagger.gradient_checkpointing_enable()
        torch.manual_seed(1)
        tagger(*batch).logits["word"].square().sum().backward()
        gradients.append([p.grad for p in tagger.parameters() if p.grad is not None])
    for plain, recomputed in zip(*gradients):
        torch.testing.assert_close(plain, recomputed)


def test_features_are_masked_in_training_by_the_seed(batch):
    tagger = make_tagger("conv_net", augment=SpecAugment())
    for module in tagger.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    seed = torch.arange(5)
    first, again, other = (tagger(*batch, s).logits["word"] for s in (seed, seed, seed + 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    tagger.eval()
    assert torch.equal(tagger(*batch, seed).logits["word"], tagger(*batch).logits["word"])


def test_masked_batch_norm_is_batch_norm_where_nothing_is_padded():
    ours, theirs, x = MaskedBatchNorm(6), nn.BatchNorm2d(6), torch.randn(4, 6, 9, 5) * 3 + 2
    mask = torch.ones(4, 1, 9, 1)
    torch.testing.assert_close(ours(x, mask), theirs(x), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    torch.testing.assert_close(ours.eval()(x, mask), theirs.eval()(x), atol=1e-5, rtol=1e-5)


def test_output_is_seen_through_by_tree_functions():
    output = TaggerOutput({"word": torch.zeros(1, 2)}, torch.zeros(1, 3))
    leaves, _ = torch.utils._pytree.tree_flatten(output)
    assert len(leaves) == 2


def test_the_loss_is_a_sum_over_known_labels_and_a_count_of_clips():
    logits = {"word": torch.randn(4, 5), "speaker": torch.randn(4, 3)}
    targets = {"word": torch.tensor([0, 1, 2, 3]), "speaker": torch.tensor([2, -100, 0, -100])}
    result = MultiTargetCrossEntropy({"word": 1.0, "speaker": 0.5})(logits, targets)
    known = [0, 2]
    word = nn.functional.cross_entropy(logits["word"], targets["word"], reduction="sum")
    speaker = nn.functional.cross_entropy(logits["speaker"][known], targets["speaker"][known], reduction="sum")
    torch.testing.assert_close(result.loss, word + 0.5 * speaker)
    assert result.num_items == 4
    assert {target: count.item() for target, count in result.counts.items()} == {"word": 4, "speaker": 2}
    torch.testing.assert_close(result.sums["speaker"], speaker)


def test_shares_of_classes_are_targets_too():
    logits = {"word": torch.randn(3, 4)}
    ids = torch.tensor([2, -100, 0])
    shares = torch.nn.functional.one_hot(ids.clamp(min=0), 4).float() * (ids >= 0).unsqueeze(1)
    by_id, by_share = (MultiTargetCrossEntropy()(logits, {"word": target}) for target in (ids, shares))
    assert torch.allclose(by_id.loss, by_share.loss)
    assert by_id.counts["word"] == by_share.counts["word"] == 2


def test_a_batch_without_any_label_has_no_loss_and_finite_gradients():
    logits = {"word": torch.randn(2, 5, requires_grad=True)}
    result = MultiTargetCrossEntropy(label_smoothing=0.1)(logits, {"word": torch.tensor([-100, -100])})
    result.loss.backward()
    assert result.loss.item() == 0
    assert logits["word"].grad.abs().sum() == 0


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_tagger_trains_under_autocast(backbone, batch):
    tagger = make_tagger(backbone).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = tagger(*batch).logits["word"].float().square().sum()
    loss.backward()
    assert all(p.grad.isfinite().all() for p in tagger.parameters() if p.grad is not None)

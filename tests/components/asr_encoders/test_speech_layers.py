"""Layers of speech encoders, each against a loop or the library's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from components.layers.convolution_module import ConvolutionModule
from components.layers.depthwise_conv import DepthwiseConv, FrameCache
from components.layers.dropout import Dropout
from components.layers.frame_norm import FrameBatchNorm, FrameGroupNorm, frozen_statistics
from components.layers.fsmn import FsmnMemory
from components.layers.relative_positions import distance_sinusoids, sinusoids
from components.layers.self_attention import RelativeAttention, SelfAttention
from components.layers.visible_frames import attention_mask, visible_frames
from utils.errors import UserError

from .checks import stir

PADDING = torch.arange(7).unsqueeze(0) >= torch.tensor([[7], [4], [1]])


def test_relative_attention_is_the_sum_over_pairs_of_frames():
    attention = stir(RelativeAttention(8, 2)).eval()
    x = torch.randn(1, 5, 8)
    query, key, value = attention.query_key_value(x)[0].view(5, 3, 2, 4).unbind(1)
    out = torch.zeros(5, 2, 4)
    for head in range(2):
        for i in range(5):
            scores = torch.zeros(5)
            for j in range(5):
                distance = attention.distance(sinusoids(torch.tensor([i - j]), 8))[0].view(2, 4)[head]
                content = (query[i, head] + attention.content_bias[head, 0]) @ key[j, head]
                scores[j] = (content + (query[i, head] + attention.distance_bias[head, 0]) @ distance) / 2
            out[i, head] = scores.softmax(0) @ value[:, head]
    expected = attention.out(out.flatten(1))
    torch.testing.assert_close(attention(x, positions=distance_sinusoids(5, 5, 8))[0], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("window", [1, 4, 5, 40])
def test_banded_attention_is_the_loop_over_frames(window):
    attention, x = SelfAttention(8, 2).eval(), torch.randn(1, 11, 8)
    places = torch.arange(11)
    banded = attention(x, mask=attention_mask(None, visible_frames(places, places, window)))
    query, key, value = attention.query_key_value(x)[0].view(11, 3, 2, 4).unbind(1)
    for i in range(11):
        band = slice(max(0, i - window // 2), i + window - window // 2)
        weights = (torch.einsum("hc,jhc->hj", query[i], key[band]) / 2).softmax(-1)
        expected = attention.out(torch.einsum("hj,jhc->hc", weights, value[band]).flatten())
        torch.testing.assert_close(banded[0, i], expected, atol=1e-6, rtol=1e-5)


def test_a_chunk_sees_itself_and_as_many_before_as_it_is_told():
    places = torch.arange(6)
    assert visible_frames(places, places, chunk=2, left_chunks=1).long().tolist() == [
        [1, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [0, 0, 1, 1, 1, 1],
        [0, 0, 1, 1, 1, 1],
    ]


@pytest.mark.parametrize(("kernel", "before"), [(5, None), (5, 4), (4, 1), (1, 0)])
def test_a_depthwise_convolution_is_the_librarys(kernel, before):
    conv = DepthwiseConv(6, kernel, before)
    x = torch.randn(2, 9, 6)
    padded = nn.functional.pad(x.mT, (conv.num_before, conv.num_behind))
    expected = nn.functional.conv1d(padded, conv.weight, conv.bias, groups=6).mT
    torch.testing.assert_close(conv(x), expected, atol=1e-6, rtol=1e-5)


def test_a_causal_convolution_goes_on_where_it_stopped():
    conv, cache, x = DepthwiseConv(6, 5, 4), FrameCache(), torch.randn(2, 9, 6)
    parts = [conv(part, cache) for part in x.split((1, 6, 2), dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), conv(x), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_of_a_padded_batch_is_that_of_the_true_frames_in_a_row(training):
    ours, theirs = stir(FrameBatchNorm(4)).train(training), nn.BatchNorm1d(4).train(training)
    theirs.load_state_dict(ours.state_dict(), strict=False)
    x = torch.randn(3, 7, 4) * 3 + 20
    expected = theirs(x[~PADDING])
    torch.testing.assert_close(ours(x, PADDING.unsqueeze(-1))[~PADDING], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    torch.testing.assert_close(ours(x), theirs(x.flatten(0, 1)).view(x.shape), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.running_var, theirs.running_var)


def test_batch_norm_of_a_single_frame_is_its_bias():
    norm = stir(FrameBatchNorm(4))
    torch.testing.assert_close(norm(torch.randn(1, 1, 4)), norm.bias.expand(1, 1, 4))
    assert norm.running_var.isfinite().all()


def test_statistics_can_be_held():
    norm, x = FrameBatchNorm(4), torch.randn(3, 7, 4)
    with frozen_statistics():
        norm(x)
        norm(x, PADDING.unsqueeze(-1))
    assert not norm.running_mean.any()
    norm(x)
    assert norm.running_mean.any()


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_group_norm_of_a_padded_batch_is_that_of_each_clip(groups):
    ours, theirs = stir(FrameGroupNorm(groups, 4)), nn.GroupNorm(groups, 4)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(3, 7, 4) * 3 + 5
    together = ours(x, PADDING.unsqueeze(-1))
    for i, length in enumerate((7, 4, 1)):
        alone = x[i : i + 1, :length].mT.double()  # the library's own is off by 1e-4 where a group is one number
        expected = torch.group_norm(alone, groups, theirs.weight.double(), theirs.bias.double()).mT.float()
        torch.testing.assert_close(together[i : i + 1, :length], expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(ours(x), theirs(x.mT).mT, atol=1e-5, rtol=1e-4)


def test_dropout_keeps_the_mean_and_drops_its_share():
    dropout, x = Dropout(0.1), torch.ones(1000, 1001, requires_grad=True)
    out = dropout(x)
    assert (out == 0).float().mean().item() == pytest.approx(0.1, abs=2e-3)
    assert out.mean().item() == pytest.approx(1, abs=3e-3)
    assert len(out.detach().unique()) == 2
    out.sum().backward()
    assert torch.equal(x.grad, out.detach())
    assert dropout.eval()(x) is x


@pytest.mark.parametrize(("rate", "left"), [(0.0, 1.0), (1.0, 0.0), (1e-6, 1.0)])
def test_dropout_at_its_ends(rate, left):
    torch.testing.assert_close(Dropout(rate)(torch.ones(3, 5)), torch.full((3, 5), left))


def test_dropout_follows_the_seed():
    def drawn(seed):
        torch.manual_seed(seed)
        return Dropout(0.5)(torch.ones(99))

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))


def test_the_memory_of_a_frame_is_itself_and_its_weighted_neighbours():
    memory, x = FsmnMemory(3, kernel_size=5), torch.randn(1, 6, 3)
    expected = x.clone()
    for t in range(6):
        for k in range(5):
            if 0 <= t + k - 2 < 6:
                expected[0, t] += memory.conv.weight[:, 0, k] * x[0, t + k - 2]
    torch.testing.assert_close(memory(x), expected)


def test_settings_that_do_not_exist_are_refused():
    with pytest.raises(UserError, match="norm: expected batch, layer or group, got 'weight'"):
        ConvolutionModule(8, norm="weight")
    with pytest.raises(UserError, match="which is not causal"):
        ConvolutionModule(8, norm="group", causal=True)
    with pytest.raises(UserError, match="kernel_size must be odd, got 4"):
        ConvolutionModule(8, kernel_size=4)
    with pytest.raises(UserError, match="3 heads do not divide 8"):
        SelfAttention(8, 3)

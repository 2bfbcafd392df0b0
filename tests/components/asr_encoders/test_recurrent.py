"""Recurrent layers: padding, both directions, layers, and what saves memory."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from components.models.asr.encoders import RecurrentEncoder, StackSubsampling, record_attention
from components.models.asr.encoders.recurrent import RecurrentLayer, turned_frames
from utils.errors import UserError

from .checks import LENS, assert_alone_as_in_batch, noisy_batch, stir

RECURRENT = partial(RecurrentEncoder, dim=16, num_layers=2)
KINDS = {
    "gru": RECURRENT,
    "lstm": partial(RECURRENT, cell="lstm"),
    "stacked frames": partial(RECURRENT, subsampling=partial(StackSubsampling, factor=3)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_clip_is_encoded_alone_as_in_a_batch_with_garbage_behind_it(kind):
    encoder = stir(KINDS[kind](20)).eval()
    x = noisy_batch(LENS, 20, garbage=float("nan"))
    together = assert_alone_as_in_batch(encoder, x, LENS, layers=[1, 2])
    assert torch.equal(together.layers[2], together.hidden)
    assert (together.layers[1] - together.hidden).abs().max() > 1e-3
    lens = torch.arange(1, 60)
    assert encoder.output_lens(lens).tolist() == [-(-length // encoder.subsampling) for length in lens.tolist()]


@pytest.mark.parametrize("kind", KINDS)
def test_garbage_behind_clips_changes_no_gradient(kind):
    encoder, outcomes = stir(KINDS[kind](20, dropout=0.0)), []
    for garbage in (0.0, 1e3):
        encoder.zero_grad()
        torch.manual_seed(0)
        encoder(noisy_batch(LENS, 20, garbage), LENS).hidden.square().sum().backward()
        outcomes.append({name: parameter.grad.clone() for name, parameter in encoder.named_parameters()})
    torch.testing.assert_close(outcomes[0], outcomes[1], atol=1e-4, rtol=1e-4)
    assert all(gradient.any() for gradient in outcomes[0].values())


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_a_layer_is_the_librarys_bidirectional_one_over_packed_clips(cell):
    layer, lens = RecurrentLayer(8, cell, dropout=0.5).eval(), torch.tensor([5, 9, 1])
    theirs = {"gru": torch.nn.GRU, "lstm": torch.nn.LSTM}[cell](8, 4, batch_first=True, bidirectional=True)
    for direction, suffix in ((layer.forwards, ""), (layer.backwards, "_reverse")):
        theirs.load_state_dict({name + suffix: value for name, value in direction.state_dict().items()}, strict=False)
    x = torch.randn(3, 9, 8)
    packed = pack_padded_sequence(layer.norm(x), lens, batch_first=True, enforce_sorted=False)
    expected, _ = pad_packed_sequence(theirs(packed)[0], batch_first=True)
    found = layer(x, turned_frames(lens, 9)) - x
    for i, length in enumerate(lens.tolist()):
        torch.testing.assert_close(found[i, :length], expected[i, :length], atol=1e-5, rtol=1e-5)


def test_clips_are_turned_round_and_their_padding_is_not():
    assert turned_frames(torch.tensor([3, 4, 1]), 4).tolist() == [2, 1, 0, 3, 7, 6, 5, 4, 8, 9, 10, 11]


def test_every_frame_hears_the_whole_clip_and_nothing_of_another():
    encoder = RECURRENT(20, num_layers=1).eval()
    x = noisy_batch(LENS, 20).requires_grad_()
    frame = int(encoder.output_lens(LENS)[1]) // 2
    encoder(x, LENS).hidden[1, frame].square().sum().backward()
    seen = x.grad.abs().sum(2) > 0
    assert seen[1].tolist() == [t < LENS[1] for t in range(50)]
    assert not seen[[0, 2, 3]].any()


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_checkpointing_does_not_change_gradients(cell):
    outcomes, computed = [], []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        encoder, calls = stir(RECURRENT(20, cell=cell)), []
        if checkpointed:
            encoder.gradient_checkpointing_enable()
        encoder.layers[1].forwards.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        encoder(noisy_batch(LENS, 20), LENS).hidden.square().sum().backward()
        outcomes.append({name: parameter.grad for name, parameter in encoder.named_parameters()})
        computed.append(len(calls))
    torch.testing.assert_close(outcomes[0], outcomes[1], atol=1e-5, rtol=1e-4)
    assert computed == [1, 2]


def test_it_has_no_attention_to_show():
    encoder = RECURRENT(20)
    with record_attention(encoder) as maps:
        encoder(noisy_batch(LENS, 20), LENS)
    assert maps == {}


def test_settings_that_do_not_exist_are_refused():
    with pytest.raises(UserError, match="cell: expected one of gru, lstm, got 'rnn'"):
        RECURRENT(20, cell="rnn")
    with pytest.raises(UserError, match="15 channels can not be halved"):
        RECURRENT(20, dim=15)
    with pytest.raises(UserError, match="layers 1 to 2, not 3"):
        RECURRENT(20)(noisy_batch(LENS, 20), LENS, layers=[3])


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_autocast_stays_close(cell):
    encoder, x = stir(RECURRENT(20, cell=cell)).eval(), noisy_batch(LENS, 20)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = encoder(x, LENS).hidden.float()
    full = encoder(x, LENS).hidden
    assert (low - full).norm() / full.norm() < 0.05

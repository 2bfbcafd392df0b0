"""Conformer, transformer and SANM: padding, layers, attention maps, and what saves memory."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from components.models.asr.encoders import (
    ConformerEncoder,
    NoSubsampling,
    SanmEncoder,
    StackSubsampling,
    TransformerEncoder,
    record_attention,
)
from components.models.asr.encoders.chunks import Chunks
from utils.errors import UserError

from .checks import LENS, assert_alone_as_in_batch, noisy_batch, stir

SMALL = {"dim": 16, "num_layers": 2, "num_heads": 2}
CONFORMER = partial(ConformerEncoder, **SMALL, kernel_size=7)
TRANSFORMER = partial(TransformerEncoder, **SMALL)
SANM = partial(SanmEncoder, **SMALL, kernel_size=5)

KINDS = {
    "conformer": CONFORMER,
    "conformer, rotary, layer norm": partial(CONFORMER, positions="rotary", norm="layer"),
    "conformer, sinusoid, group norm": partial(CONFORMER, positions="sinusoid", norm="group"),
    "conformer, no positions, band": partial(CONFORMER, positions="none", attention_window=5),
    "conformer, relative, band": partial(CONFORMER, attention_window=4),
    "conformer, causal, chunks": partial(CONFORMER, causal=True, chunk_frames=3, left_chunks=1),
    "conformer, chunks and band": partial(CONFORMER, causal=True, chunk_frames=3, attention_window=4),
    "conformer, stacked frames": partial(CONFORMER, subsampling=partial(StackSubsampling, factor=3)),
    "transformer": TRANSFORMER,
    "transformer, relative": partial(TRANSFORMER, positions="relative"),
    "transformer, rotary, chunks": partial(TRANSFORMER, positions="rotary", chunk_frames=2),
    "sanm": SANM,
    "sanm, same width": partial(SANM, dim=20),
    "sanm, chunks": partial(SANM, causal=True, chunk_frames=4, left_chunks=0),
    "sanm, stacked frames": partial(SANM, subsampling=partial(StackSubsampling, factor=6)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_clip_is_encoded_alone_as_in_a_batch_with_garbage_behind_it(kind):
    encoder = stir(KINDS[kind](20)).eval()
    x = noisy_batch(LENS, 20, garbage=float("nan"))
    together = assert_alone_as_in_batch(encoder, x, LENS, layers=[1, 2])
    torch.testing.assert_close(together.layers[2], together.hidden)
    assert (together.layers[1] - together.hidden).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["conformer", "conformer, rotary, layer norm", "transformer", "sanm"])
def test_garbage_behind_clips_changes_no_gradient_and_no_statistics(kind):
    encoder = stir(KINDS[kind](20))
    for module in encoder.modules():
        if hasattr(module, "p"):
            module.p = 0.0
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    outcomes = []
    for garbage in (0.0, 1e3):
        encoder.load_state_dict(before)
        encoder.zero_grad()
        torch.manual_seed(0)
        encoder(noisy_batch(LENS, 20, garbage), LENS).hidden.square().sum().backward()
        gradients = {name: parameter.grad.clone() for name, parameter in encoder.named_parameters()}
        outcomes.append((gradients, {name: value.clone() for name, value in encoder.named_buffers()}))
    torch.testing.assert_close(outcomes[0], outcomes[1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["conformer", "conformer, chunks and band", "transformer, relative", "sanm"])
def test_attention_maps_are_the_weights_of_every_layer(kind):
    encoder = stir(KINDS[kind](20)).eval()
    x = noisy_batch(LENS, 20)
    usual = encoder(x, LENS)
    with record_attention(encoder) as maps:
        recorded = encoder(x, LENS)
    torch.testing.assert_close(usual.hidden, recorded.hidden, atol=1e-5, rtol=0)
    frames = usual.hidden.shape[1]
    assert {number: tuple(weights.shape) for number, weights in maps.items()} == dict.fromkeys(
        (1, 2), (4, 2, frames, frames)
    )
    own = int(usual.lens[1])
    torch.testing.assert_close(maps[1][1, :, :own, :own].sum(-1), torch.ones(2, own))
    assert not maps[1][1, :, :own, own:].any()
    encoder(x[:2], LENS[:2])
    assert maps[1].shape[0] == 4, "recorded outside of the context"


@pytest.mark.parametrize("kind", ["conformer", "conformer, sinusoid, group norm", "transformer", "sanm"])
def test_checkpointing_changes_neither_gradients_nor_statistics(kind):
    outcomes = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        encoder = stir(KINDS[kind](20))
        if checkpointed:
            encoder.gradient_checkpointing_enable()
        encoder(noisy_batch(LENS, 20), LENS).hidden.square().sum().backward()
        gradients = {name: parameter.grad for name, parameter in encoder.named_parameters()}
        outcomes.append((gradients, dict(encoder.named_buffers())))
    torch.testing.assert_close(outcomes[0], outcomes[1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("make", [CONFORMER, TRANSFORMER, SANM])
def test_a_dropped_layer_does_nothing_and_leaves_every_parameter_a_gradient(make):
    encoder = make(20, layerdrop=1.0)
    encoder(noisy_batch(LENS, 20), LENS).hidden.sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())
    assert not any(parameter.grad.any() for parameter in encoder.layers[1].parameters())


def test_layers_that_do_not_exist_are_refused():
    with pytest.raises(UserError, match="layers 1 to 2, not 3"):
        CONFORMER(20)(noisy_batch(LENS, 20), LENS, layers=[3])


def test_positions_that_do_not_exist_are_refused():
    with pytest.raises(UserError, match="positions: expected one of relative, rotary, sinusoid, none, got 'absolute'"):
        CONFORMER(20, positions="absolute")
    with pytest.raises(UserError, match="rotary ones need an even number"):
        CONFORMER(20, dim=18, num_heads=2, positions="rotary")


def test_random_chunks_are_whole_half_the_time_and_else_of_any_size():
    torch.manual_seed(0)
    drawn = [Chunks(None, None, random=True).draw(training=True) for _ in range(2000)]
    sizes = [chunk[0] for chunk in drawn if chunk is not None]
    assert set(sizes) == set(range(1, 26))
    assert len(sizes) == pytest.approx(1000, abs=100)
    torch.manual_seed(0)
    assert [Chunks(None, None, random=True).draw(training=True) for _ in range(2000)] == drawn
    assert Chunks(8, 2, random=True).draw(training=False) == (8, 2)


def test_a_training_forward_draws_its_chunks_from_the_global_generator():
    encoder = stir(TRANSFORMER(20, random_chunks=True, dropout=0.0))
    x, lens = torch.randn(2, 200, 20), torch.tensor([200, 200])

    def hidden(seed):
        torch.manual_seed(seed)
        return encoder(x, lens).hidden

    outcomes = [hidden(seed) for seed in range(6)]
    assert torch.equal(outcomes[3], hidden(3))
    assert len({h.sum().item() for h in outcomes}) > 2


def test_sanm_without_subsampling_takes_the_features_as_they_are():
    encoder = SANM(560)
    assert isinstance(encoder.subsample, NoSubsampling)
    assert encoder.layers[0].attention.query_key_value.in_features == 560
    assert not encoder.layers[0].keeps_width
    assert encoder.layers[1].keeps_width


@pytest.mark.parametrize("kind", ["conformer", "transformer", "sanm"])
def test_autocast_stays_close(kind):
    encoder = stir(KINDS[kind](20)).eval()
    x = noisy_batch(LENS, 20)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = encoder(x, LENS).hidden.float()
    full = encoder(x, LENS).hidden
    assert (low - full).norm() / full.norm() < 0.05

"""Sound as it comes: the same as the masked whole."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from components.models.asr.encoders import Conv2dSubsampling, SanmEncoder, StackSubsampling
from utils.errors import UserError

from .checks import stir
from .test_encoders import CONFORMER, SANM, TRANSFORMER

CAUSAL = partial(CONFORMER, causal=True)
KINDS = {
    "conformer": CAUSAL,
    "conformer, rotary, layer norm": partial(CAUSAL, positions="rotary", norm="layer"),
    "conformer, sinusoid": partial(CAUSAL, positions="sinusoid"),
    "conformer, band": partial(CAUSAL, attention_window=6),
    "conformer, factor 6": partial(CAUSAL, subsampling=partial(Conv2dSubsampling, factor=6, channels=4)),
    "conformer, stacked": partial(CAUSAL, subsampling=partial(StackSubsampling, factor=3)),
    "transformer": TRANSFORMER,
    "transformer, relative": partial(TRANSFORMER, positions="relative"),
    "sanm": partial(SANM, causal=True),
    "sanm, stacked": partial(SANM, causal=True, subsampling=partial(StackSubsampling, factor=6)),
}
LENGTH = 83


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("chunk", "left"), [(4, 1), (1, None), (3, 0), (50, 2)])
def test_what_is_pushed_equals_the_masked_whole(kind, chunk, left):
    encoder, x = stir(KINDS[kind](20)).eval(), torch.randn(2, LENGTH, 20)
    whole = encoder(x, torch.tensor([LENGTH, LENGTH]), chunk=(chunk, left)).hidden
    for sizes in ((LENGTH,), (1,) * LENGTH, (10, 30, 43)):
        stream = encoder.stream(chunk, left)
        parts = [stream.push(part) for part in x.split(sizes, dim=1)]
        assert all(part.shape[1] % chunk == 0 for part in parts)
        torch.testing.assert_close(torch.cat([*parts, stream.finish()], dim=1), whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["conformer", "conformer, factor 6", "conformer, stacked", "sanm"])
def test_latency_is_when_the_first_chunk_comes_out(kind):
    encoder, x = KINDS[kind](20).eval(), torch.randn(1, LENGTH, 20)
    stream = encoder.stream(4, feature_seconds=0.01)
    pushed = 1
    while not stream.push(x[:, pushed - 1 : pushed]).shape[1]:
        pushed += 1
    assert stream.latency == pytest.approx(0.01 * pushed)


def test_a_chunk_does_not_see_the_next():
    encoder, x = stir(CAUSAL(20)).eval(), torch.randn(1, LENGTH, 20)
    lens = torch.tensor([LENGTH])
    other = x.clone()
    other[:, 4 * 8 :] = torch.randn(1, LENGTH - 32, 20)
    first, second = (encoder(features, lens, chunk=(4, None)).hidden for features in (x, other))
    torch.testing.assert_close(first[:, :4], second[:, :4], atol=1e-6, rtol=0)
    assert (first[:, 8:] - second[:, 8:]).abs().max() > 1e-2


def test_the_encoders_own_chunk_is_the_streams():
    encoder, x = stir(CAUSAL(20, chunk_frames=5, left_chunks=1)).eval(), torch.randn(1, LENGTH, 20)
    stream = encoder.stream()
    streamed = torch.cat([stream.push(x), stream.finish()], dim=1)
    torch.testing.assert_close(streamed, encoder(x, torch.tensor([LENGTH])).hidden, atol=1e-5, rtol=0)


def test_a_stream_of_nothing_is_empty():
    assert CAUSAL(20).eval().stream(4).finish().shape == (1, 0, 16)


def test_an_encoder_that_looks_ahead_is_refused():
    for make in (partial(CONFORMER, chunk_frames=4), partial(SanmEncoder, random_chunks=True)):
        with pytest.raises(UserError, match="set causal: true"):
            make(20)
    with pytest.raises(UserError, match="set causal: true"):
        CONFORMER(20).eval().stream(4)
    with pytest.raises(UserError, match="set causal: true"):
        CONFORMER(20)(torch.randn(1, 9, 20), torch.tensor([9]), chunk=(4, None))


def test_a_stream_needs_eval_mode_and_a_size():
    with pytest.raises(UserError, match="call eval"):
        CAUSAL(20).stream(4)
    with pytest.raises(UserError, match="no chunk_frames"):
        CAUSAL(20).eval().stream()
    with pytest.raises(UserError, match="left_chunks"):
        CAUSAL(20, left_chunks=2)
    with pytest.raises(UserError, match="at least 1, got 0"):
        CAUSAL(20, chunk_frames=0)

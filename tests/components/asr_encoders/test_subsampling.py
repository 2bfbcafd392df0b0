"""Fewer frames: their number, their padding, and the same frame by frame."""

from __future__ import annotations

import pytest
import torch

from components.models.asr.encoders import Conv2dSubsampling, NoSubsampling, StackSubsampling
from utils.errors import UserError

from .checks import LENS, noisy_batch

KINDS = {
    "conv2": lambda: Conv2dSubsampling(13, 8, factor=2),
    "conv4": lambda: Conv2dSubsampling(13, 8, factor=4),
    "conv6": lambda: Conv2dSubsampling(13, 8, factor=6, channels=4),
    "conv8": lambda: Conv2dSubsampling(13, 8, factor=8),
    "separable": lambda: Conv2dSubsampling(13, 8, factor=4, separable=True),
    "stack": lambda: StackSubsampling(13, 8, factor=3),
    "linear": lambda: StackSubsampling(13, 8, factor=1),
    "none": lambda: NoSubsampling(13, 13),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_clip_is_subsampled_alone_as_in_a_batch_with_garbage_behind_it(kind):
    subsampling, x = KINDS[kind](), noisy_batch(LENS, 13, garbage=float("nan"))
    together, lens = subsampling(x, LENS)
    assert lens.tolist() == [-(-length // subsampling.factor) for length in LENS.tolist()]
    assert together.shape[1] == lens.max()
    for i, length in enumerate(LENS.tolist()):
        alone, own = subsampling(x[i : i + 1, :length], LENS[i : i + 1])
        assert alone.shape[1] == own
        torch.testing.assert_close(alone[0], together[i, :own], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [(1,) * 29, (29,), (3, 7, 0, 19), (28, 1)])
def test_pushed_frame_by_frame_it_is_the_same(kind, sizes):
    subsampling, x = KINDS[kind](), torch.randn(2, 29, 13)
    stream = subsampling.stream()
    parts = [stream.push(part) for part in x.split(sizes, dim=1)]
    whole, _ = subsampling(x, torch.tensor([29, 29]))
    torch.testing.assert_close(torch.cat([*parts, stream.finish()], dim=1), whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_frame_sees_as_far_ahead_as_it_says(kind):
    subsampling = KINDS[kind]()
    x = torch.randn(1, 64, 13, requires_grad=True)
    frame, lens = 3, torch.tensor([64])
    subsampling(x, lens)[0][0, frame].sum().backward()
    seen = x.grad.abs().sum(2)[0].nonzero().flatten()
    assert int(seen.max()) == subsampling.factor * frame + subsampling.look_ahead


def test_a_factor_that_does_not_exist_is_refused():
    with pytest.raises(UserError, match="factor: expected one of 2, 4, 6, 8, got 3"):
        Conv2dSubsampling(13, 8, factor=3)

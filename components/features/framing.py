"""From samples to frames and their spectra.  Shapes: B batch, T samples, L frames, W samples of a frame, N bins."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from components.layers.masking import length_mask

# Frames that are worked on at once: what they become on the way stays in the cache of a core, and is small enough for
# the allocator to hand the same memory out again; with twice as many some clips paid for fresh pages at every step.
_BLOCK = 256


def by_blocks(compute: Callable[[Tensor], Tensor], frames: Tensor) -> Tensor:
    """`compute(frames)`, `[B, L, W]` to `[B, L, F]`; on a CPU in blocks, about twice as fast for long clips."""
    if frames.device.type != "cpu":
        return compute(frames)
    size = max(16, _BLOCK // frames.shape[0])
    return torch.cat([compute(block) for block in frames.split(size, dim=1)], dim=1)


def spectrum(frames: Tensor, power: float = 2.0) -> Tensor:
    """Power (2) or magnitude (1) of the Fourier transform of windowed frames, `[B, L, W]` to `[B, L, W // 2 + 1]`."""
    transformed = torch.fft.rfft(frames)
    if power == 1:
        return transformed.abs()
    return transformed.real.square().add_(transformed.imag.square())


def centred_window(window: Tensor, n_fft: int) -> Tensor:
    """A window in the middle of `n_fft` zeros."""
    left = (n_fft - len(window)) // 2
    return pad(window, (left, n_fft - len(window) - left))


def mirror(samples: Tensor, lens: Tensor, left: int, right: int, repeat_edge: bool = False) -> Tensor:
    """Continue each clip by its mirror image on both sides, at its own end; `[B, T]` to `[B, left + T + right]`.

    Args:
        lens: `[B]`; what lies behind a clip and its `right` mirrored samples is as it was.
        repeat_edge: c b a | a b c | c b a, as Kaldi does it, instead of c b | a b c | b a.
    """
    lens = lens.clamp(min=1).unsqueeze(1)
    before = torch.arange(-left, 0, device=samples.device).expand(len(samples), -1)
    behind = lens + torch.arange(right, device=samples.device)
    extended = pad(samples, (left, right))
    if left:
        extended = torch.cat([samples.gather(1, _mirrored(before, lens, repeat_edge)), extended[:, left:]], dim=1)
    return extended.scatter(1, left + behind, samples.gather(1, _mirrored(behind, lens, repeat_edge)))


def _mirrored(position: Tensor, lens: Tensor, repeat_edge: bool) -> Tensor:
    """Where inside a clip the mirrors at its ends show what lies at `position`, however short the clip is."""
    period = 2 * lens if repeat_edge else (2 * lens - 2).clamp(min=1)
    inside = position.remainder(period)
    return torch.where(inside < lens, inside, period - int(repeat_edge) - inside)


def clip_maximum(features: Tensor, feature_lens: Tensor) -> Tensor:
    """The largest value of each clip below its length, `[B, L, F]` to `[B, 1, 1]`."""
    return features.masked_fill(behind_clips(features, feature_lens), -torch.inf).amax((1, 2), keepdim=True)


def behind_clips(features: Tensor, feature_lens: Tensor) -> Tensor:
    """True at the frames behind each clip's last, `[B, L, F]` with `[B]` to `[B, L, 1]`."""
    return ~length_mask(feature_lens, features.shape[1]).unsqueeze(-1)

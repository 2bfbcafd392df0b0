"""From magnitudes to a waveform.

Shapes: B batch, T samples, L frames, W samples of a frame, N bins of the spectrum.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from components.layers import length_mask

_QUIETEST = 1e-12  # of a complex number that has a direction


@torch.no_grad()
def griffin_lim(
    magnitudes: Tensor,
    frame_lens: Tensor,
    window: Tensor,
    hop_length: int,
    outside: int,
    num_iterations: int = 16,
    momentum: float = 0.99,
) -> Tensor:
    """A waveform `[B, L * hop_length]` whose spectrogram has about the given magnitudes; no gradients.

    The fast variant (Perraudin, Balazs & Soendergaard 2013, algorithm 2) of Griffin & Lim 1984, which has momentum 0.
    Every bin begins with the phase of a steady tone at its own frequency, so nothing is random; a clip of a batch comes
    out as if it stood alone, and is zero behind its end.

    Args:
        magnitudes: `[B, L, N]` of frames of `2 (N - 1)` samples, windowed.
        frame_lens: `[B]`.
        window: `[2 (N - 1)]`.
        outside: samples of the first frame that lie before the clip's first.
        num_iterations: how often the phase is brought into agreement between frames.
        momentum: how far it is carried on in the direction of its last change.
    """
    num_frames, n_fft = magnitudes.shape[1], len(window)
    inside = length_mask(frame_lens, num_frames)
    magnitudes = magnitudes.masked_fill(~inside.unsqueeze(-1), 0)
    to_waveform = _OverlapAdd(inside, window, hop_length, outside)
    spectrum = torch.polar(magnitudes, _steady_phase(num_frames, n_fft, hop_length, magnitudes.device))
    before: Tensor | float = 0.0
    for _ in range(num_iterations):
        samples = pad(to_waveform(spectrum), (outside, n_fft))
        frames = samples.unfold(-1, n_fft, hop_length)[:, :num_frames]
        agreed = torch.fft.rfft(frames * window)
        ahead = agreed + momentum * (agreed - before)
        before = agreed
        spectrum = ahead * (magnitudes / ahead.abs().clamp(min=_QUIETEST))
    return to_waveform(spectrum)


def _steady_phase(num_frames: int, n_fft: int, hop_length: int, device: torch.device) -> Tensor:
    """`2 pi n l hop / n_fft`, `[L, N]`, in whole turns less so that single precision does not lose it."""
    steps = torch.arange(num_frames, device=device).unsqueeze(1) * hop_length
    turns = (steps * torch.arange(n_fft // 2 + 1, device=device)).remainder(n_fft)
    return turns * (2 * math.pi / n_fft)


class _OverlapAdd:
    """The waveform nearest to spectra that need not agree with each other (Griffin & Lim 1984, eq. 6)."""

    def __init__(self, inside: Tensor, window: Tensor, hop_length: int, outside: int) -> None:
        self.window, self.hop_length, self.outside, self.n_fft = window, hop_length, outside, len(window)
        num_frames = inside.shape[1]
        self.num_samples = num_frames * hop_length
        weight = self._add(inside.unsqueeze(-1) * window.square())
        within = inside.repeat_interleave(hop_length, dim=1)
        self.scale = torch.where(within & (weight > 1e-3), weight.clamp(min=1e-3).reciprocal(), 0)

    def __call__(self, spectrum: Tensor) -> Tensor:
        """`[B, L, N]` to `[B, L * hop_length]`."""
        return self._add(torch.fft.irfft(spectrum, n=self.n_fft) * self.window) * self.scale

    def _add(self, frames: Tensor) -> Tensor:
        pieces = pad(frames, (0, -self.n_fft % self.hop_length)).unflatten(-1, (-1, self.hop_length))
        num_clips, num_frames, num_pieces, _ = pieces.shape
        added = frames.new_zeros(num_clips, num_frames + num_pieces - 1, self.hop_length)
        for i in range(num_pieces):
            added[:, i : i + num_frames] += pieces[:, :, i]
        added = added.flatten(1)[:, self.outside :]
        return pad(added, (0, max(0, self.num_samples - added.shape[1])))[:, : self.num_samples]

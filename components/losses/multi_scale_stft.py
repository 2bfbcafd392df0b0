"""How different two waveforms sound, at several resolutions.

Shapes: B batch, T samples, L frames, W samples of a window, N bins of the spectrum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from components.features.framing import behind_clips, centred_window, mirror
from components.layers import length_mask
from utils.errors import UserError

_QUIETEST = 1e-8  # power of a bin below which nothing is told apart


@dataclass(slots=True)
class SpectralLoss:
    """Both parts of a multi-resolution STFT loss, means over resolutions, `[B]` each.

    Attributes:
        spectral_convergence: |S - S'| / |S|, norms over a clip's bins and frames.
        log_magnitude: mean |log S - log S'|.
    """

    spectral_convergence: Tensor
    log_magnitude: Tensor

    @property
    def total(self) -> Tensor:
        """Their sum, `[B]`."""
        return self.spectral_convergence + self.log_magnitude


class MultiResolutionStftLoss(nn.Module):
    """Spectral convergence and log-magnitude distance (Yamamoto, Song & Kim 2020, arXiv:1910.11480, eq. 3-6).

    One loss per clip over its own samples: frames are centred, and a clip is continued by its mirror image at its own
    end, so padding changes nothing.

    Args:
        fft_sizes, hop_lengths, win_lengths: samples, one of each for every resolution.

    Raises:
        UserError: they are not of one length, or a window is longer than its FFT.
    """

    def __init__(
        self,
        fft_sizes: Sequence[int] = (1024, 2048, 512),
        hop_lengths: Sequence[int] = (120, 240, 50),
        win_lengths: Sequence[int] = (600, 1200, 240),
    ) -> None:
        super().__init__()
        if not len(fft_sizes) == len(hop_lengths) == len(win_lengths) > 0:
            raise UserError("fft_sizes, hop_lengths and win_lengths must be of one length, one of each per resolution")
        for n_fft, win_length in zip(fft_sizes, win_lengths):
            if win_length > n_fft:
                raise UserError(f"win_lengths: a window of {win_length} samples is longer than its FFT of {n_fft}")
        self.resolutions = tuple(zip(fft_sizes, hop_lengths))
        for i, (n_fft, win_length) in enumerate(zip(fft_sizes, win_lengths)):
            self.register_buffer(f"window{i}", centred_window(torch.hann_window(win_length), n_fft), persistent=False)

    def forward(self, estimate: Tensor, target: Tensor, audio_lens: Tensor) -> SpectralLoss:
        """`[B, 1, T]` each, `[B]` to the losses of each clip."""
        with torch.autocast(target.device.type, enabled=False):
            both = torch.cat([estimate, target]).squeeze(1).float()
            lens = audio_lens.repeat(2)
            both = both.masked_fill(~length_mask(lens, both.shape[1]), 0)
            parts = [self._at(i, both, lens) for i in range(len(self.resolutions))]
            convergence, distance = (torch.stack(part).mean(0) for part in zip(*parts))
            return SpectralLoss(convergence, distance)

    def _at(self, resolution: int, both: Tensor, lens: Tensor) -> tuple[Tensor, Tensor]:
        n_fft, hop_length = self.resolutions[resolution]
        frames = mirror(both, lens, n_fft // 2, n_fft // 2).unfold(-1, n_fft, hop_length)
        spectrum = torch.fft.rfft(frames * getattr(self, f"window{resolution}"))
        power = spectrum.real.square() + spectrum.imag.square()
        estimate, target = power.clamp(min=_QUIETEST).sqrt().chunk(2)
        num_frames = 1 + lens.chunk(2)[0] // hop_length
        outside = behind_clips(target, num_frames)
        error = (target - estimate).masked_fill(outside, 0).square().sum((1, 2))
        energy = target.masked_fill(outside, 0).square().sum((1, 2))
        distance = (target.log() - estimate.log()).abs().masked_fill(outside, 0).sum((1, 2))
        # the root has no slope at 0: where both are the same, a little is left
        convergence = (error + _QUIETEST).sqrt() / energy.clamp(min=_QUIETEST).sqrt()
        return convergence, distance / (num_frames * target.shape[2])


def waveform_distance(estimate: Tensor, target: Tensor, audio_lens: Tensor) -> Tensor:
    """Mean absolute difference over each clip's own samples, `[B, 1, T]` each, `[B]` to `[B]`."""
    outside = ~length_mask(audio_lens, target.shape[-1]).unsqueeze(1)
    return (estimate - target).abs().masked_fill(outside, 0).sum((1, 2)) / audio_lens.clamp(min=1)

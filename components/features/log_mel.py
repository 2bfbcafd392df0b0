"""Log-mel spectrogram.  Shapes: B batch, T samples, L frames, F mels."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from components.layers.masking import length_mask


def mel_filters(num_bins: int, n_mels: int, sample_rate: int, f_min: float, f_max: float) -> Tensor:
    """Triangular filters, equally spaced on the HTK mel scale, of height one; `[num_bins, n_mels]`."""

    def to_mel(hertz: float) -> float:
        return 2595 * math.log10(1 + hertz / 700)

    corners_mel = torch.linspace(to_mel(f_min), to_mel(f_max), n_mels + 2, dtype=torch.float64)
    corners = 700 * (10 ** (corners_mel / 2595) - 1)
    bins = torch.linspace(0, sample_rate / 2, num_bins, dtype=torch.float64).unsqueeze(1)
    rising = (bins - corners[:-2]) / (corners[1:-1] - corners[:-2])
    falling = (corners[2:] - bins) / (corners[2:] - corners[1:-1])
    return torch.minimum(rising, falling).clamp(min=0).float()


class LogMel(nn.Module):
    """Natural logarithm of a mel power spectrogram.

    Frame `l` is centred on sample `l * hop_length`; what lies outside the clip is zero, so a clip of T samples has
    `1 + T // hop_length` frames whether it stands alone or in a padded batch. Frames behind a clip's last are zero.

    Args:
        sample_rate: Hz.
        n_fft: length of the FFT, in samples.
        win_length: length of the Hann window in samples, `n_fft` by default; centred in the frame.
        f_min, f_max: Hz; `f_max` is half the sample rate by default.
        floor: added to the power before the logarithm. The default lies about 90 dB below a full-scale tone.
        subtract_mean: take off each clip's mean over its frames and mels, so that its loudness does not matter.
    """

    def __init__(
        self,
        sample_rate: int,
        n_fft: int = 512,
        hop_length: int = 160,
        n_mels: int = 64,
        win_length: int | None = None,
        f_min: float = 20.0,
        f_max: float | None = None,
        floor: float = 1e-5,
        subtract_mean: bool = False,
    ) -> None:
        super().__init__()
        self.sample_rate, self.n_fft, self.hop_length, self.n_mels = sample_rate, n_fft, hop_length, n_mels
        self.floor, self.subtract_mean = floor, subtract_mean
        win_length = win_length or n_fft
        left = (n_fft - win_length) // 2
        window = pad(torch.hann_window(win_length), (left, n_fft - win_length - left))
        filters = mel_filters(n_fft // 2 + 1, n_mels, sample_rate, f_min, f_max or sample_rate / 2)
        self.register_buffer("window", window, persistent=False)
        self.register_buffer("filters", filters, persistent=False)

    @property
    def num_features(self) -> int:
        """F, the number of values per frame."""
        return self.n_mels

    def feature_lens(self, audio_lens: Tensor) -> Tensor:
        """Frames of clips of `audio_lens` samples."""
        return 1 + audio_lens // self.hop_length

    def forward(self, waveform: Tensor, audio_lens: Tensor) -> tuple[Tensor, Tensor]:
        """`[B, 1, T]`, `[B]` to features `[B, L, F]` and feature_lens `[B]`; in float32 even under autocast."""
        with torch.autocast(waveform.device.type, enabled=False):
            return self._forward(waveform, audio_lens)

    def _forward(self, waveform: Tensor, audio_lens: Tensor) -> tuple[Tensor, Tensor]:
        samples = waveform.squeeze(1).float() * length_mask(audio_lens, waveform.shape[-1])
        samples = pad(samples, (self.n_fft // 2, self.n_fft // 2))
        frames = samples.unfold(-1, self.n_fft, self.hop_length) * self.window
        power = torch.view_as_real(torch.fft.rfft(frames)).square().sum(-1)
        features = torch.log(power @ self.filters + self.floor)
        feature_lens = self.feature_lens(audio_lens)
        mask = length_mask(feature_lens, features.shape[1]).unsqueeze(-1)
        features = features * mask
        if self.subtract_mean:
            mean = features.sum((1, 2)) / (feature_lens * self.n_mels)
            features = (features - mean.view(-1, 1, 1)) * mask
        return features, feature_lens

"""Log-mel spectrogram.  Shapes: B batch, T samples, L frames, F mels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from components.features.framing import behind_clips, by_blocks, centred_window, spectrum
from components.features.frontend import Frontend
from components.features.mel import mel_filters


class LogMel(Frontend):
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

    Raises:
        UserError: `f_min`, `f_max` do not fit into the sample rate.
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
        window = centred_window(torch.hann_window(win_length or n_fft), n_fft)
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

    def extract(self, samples: Tensor, audio_lens: Tensor, seed: Tensor | None) -> Tensor:
        """Features `[B, L, F]` of `[B, T]`; nothing is random."""
        frames = pad(samples, (self.n_fft // 2, self.n_fft // 2)).unfold(-1, self.n_fft, self.hop_length)
        features = by_blocks(self._log_mel, frames)
        if not self.subtract_mean:
            return features
        feature_lens = self.feature_lens(audio_lens)
        own = features.masked_fill(behind_clips(features, feature_lens), 0)
        mean = own.sum((1, 2)) / (feature_lens * self.n_mels)
        return features - mean.view(-1, 1, 1)

    def _log_mel(self, frames: Tensor) -> Tensor:
        return torch.log(spectrum(frames * self.window) @ self.filters + self.floor)

"""Whisper's log-mel spectrogram (Radford et al. 2022, arXiv:2212.04356).

Shapes: B batch, T samples, L frames, F mels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from components.features.framing import by_blocks, clip_maximum, mirror, spectrum
from components.features.frontend import Frontend
from components.features.mel import mel_filters
from utils.errors import UserError

_SAMPLE_RATE, _N_FFT, _HOP_LENGTH = 16_000, 400, 160
_FLOOR = 1e-10


class WhisperLogMel(Frontend):
    """Decadic logarithm of a mel power spectrogram, at most 8 below the clip's maximum, shifted and scaled to about
    [-1, 1]: what Whisper's encoders were trained on.

    The maximum is that of the clip's own frames. A clip of T samples has `T // 160` frames (10 ms), at least one;
    outside the clip its mirror image is heard.

    Args:
        sample_rate: Hz; Whisper knows 16000 only.
        n_mels: 80, or 128 for large-v3 and turbo.
        chunk_seconds: pad every clip with silence, or cut it, to so many seconds, 30 for Whisper's encoders: then
            silence is content, and all clips have `100 * chunk_seconds` frames. None: each clip at its own length.

    Raises:
        UserError: the sample rate is another.
    """

    def __init__(self, sample_rate: int = _SAMPLE_RATE, n_mels: int = 80, chunk_seconds: float | None = None) -> None:
        super().__init__()
        if sample_rate != _SAMPLE_RATE:
            raise UserError(f"Whisper's features are defined at {_SAMPLE_RATE} Hz, not at {sample_rate} Hz")
        self.sample_rate, self.n_mels, self.chunk_seconds = sample_rate, n_mels, chunk_seconds
        self.chunk_frames = None if chunk_seconds is None else round(chunk_seconds * sample_rate) // _HOP_LENGTH
        filters = mel_filters(_N_FFT // 2 + 1, n_mels, sample_rate, 0.0, sample_rate / 2, "slaney", "slaney")
        self.register_buffer("window", torch.hann_window(_N_FFT), persistent=False)
        self.register_buffer("filters", filters, persistent=False)

    @property
    def num_features(self) -> int:
        """F, the number of values per frame."""
        return self.n_mels

    def feature_lens(self, audio_lens: Tensor) -> Tensor:
        """Frames of clips of `audio_lens` samples."""
        if self.chunk_frames is not None:
            return torch.full_like(audio_lens, self.chunk_frames)
        return (audio_lens // _HOP_LENGTH).clamp(min=1)

    def extract(self, samples: Tensor, audio_lens: Tensor, seed: Tensor | None) -> Tensor:
        """Features `[B, L, F]` of `[B, T]`; nothing is random."""
        feature_lens = self.feature_lens(audio_lens)
        if self.chunk_frames is not None:
            samples = self._chunk(samples)
            audio_lens = torch.full_like(audio_lens, samples.shape[1])
        samples = mirror(samples, audio_lens, _N_FFT // 2, _N_FFT // 2)
        # Whisper leaves out the last frame of a centred spectrogram.
        frames = samples.unfold(-1, _N_FFT, _HOP_LENGTH)[:, : max(1, (samples.shape[1] - _N_FFT) // _HOP_LENGTH)]
        features = by_blocks(self._log_mel, frames)
        if self.chunk_frames is not None:
            features = pad(features, (0, 0, 0, self.chunk_frames - features.shape[1]), value=-10.0)
        features = torch.maximum(features, clip_maximum(features, feature_lens) - 8)
        return (features + 4) / 4

    def _chunk(self, samples: Tensor) -> Tensor:
        """Cut, or pad with zeros up to where the frames are known to be silent."""
        full = self.chunk_frames * _HOP_LENGTH
        needed = -(-(samples.shape[1] + _N_FFT) // _HOP_LENGTH) * _HOP_LENGTH
        samples = samples[:, :full]
        return pad(samples, (0, min(full, needed) - samples.shape[1]))

    def _log_mel(self, frames: Tensor) -> Tensor:
        return torch.log10((spectrum(frames * self.window) @ self.filters).clamp(min=_FLOOR))

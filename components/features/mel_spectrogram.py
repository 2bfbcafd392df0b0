"""Mel spectrograms with all their settings.  Shapes: B batch, T samples, L frames, F mels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from components.features.framing import by_blocks, centred_window, clip_maximum, mirror, spectrum
from components.features.frontend import Frontend
from components.features.mel import mel_filters
from utils.errors import UserError

_CHOICES = {
    "power": (1, 2),
    "padding": ("center", "same", "none"),
    "pad_mode": ("reflect", "constant"),
    "log": ("ln", "log10", "db", None),
}


class MelSpectrogram(Frontend):
    """The mel spectrogram of `torchaudio.transforms.MelSpectrogram`, and its logarithm.

    A clip of T samples has, by `padding`, at least one frame and else:

    - "center": `1 + T // hop_length`, frame `l` centred on sample `l * hop_length` (torchaudio's `center=True`);
    - "same": `T // hop_length` where `n_fft - hop_length` is even, frame `l` centred on its own hop, as vocoders of
      HiFi-GAN's family are trained (Kong et al. 2020, arXiv:2010.05646);
    - "none": `1 + (T - n_fft) // hop_length`, whole windows only (`center=False`).

    Args:
        sample_rate: Hz.
        n_fft: length of the FFT, in samples.
        hop_length: samples, half the window by default.
        win_length: length of the Hann window in samples, `n_fft` by default; centred in the frame.
        f_min, f_max: Hz; `f_max` is half the sample rate by default.
        power: 1 for magnitudes, 2 for powers.
        normalized: divide the spectrum's magnitudes by the norm of the window.
        padding, pad_mode: what is heard outside of a clip: its mirror image ("reflect") or silence ("constant").
        mel_scale: "htk" or "slaney".
        norm: None for filters of height one, "slaney" for filters of equal area.
        log: "ln", "log10", "db" (20 log10 of magnitudes, 10 log10 of powers), or None.
        floor: what is smaller counts as this before the logarithm.
        top_db: with `log: db`, nothing lies further below the clip's maximum.

    Raises:
        UserError: a setting is none of those named, the window is longer than the FFT, `f_min`, `f_max` do not fit into
            the sample rate, or `top_db` is given without `log: db`.
    """

    def __init__(
        self,
        sample_rate: int,
        n_fft: int = 1024,
        hop_length: int | None = None,
        n_mels: int = 80,
        win_length: int | None = None,
        f_min: float = 0.0,
        f_max: float | None = None,
        power: float = 2.0,
        normalized: bool = False,
        padding: str = "center",
        pad_mode: str = "reflect",
        mel_scale: str = "htk",
        norm: str | None = None,
        log: str | None = "ln",
        floor: float = 1e-5,
        top_db: float | None = None,
    ) -> None:
        super().__init__()
        win_length = win_length or n_fft
        settings = {"power": power, "padding": padding, "pad_mode": pad_mode, "log": log}
        for name, value in settings.items():
            if value not in _CHOICES[name]:
                allowed = ", ".join("null" if choice is None else str(choice) for choice in _CHOICES[name])
                raise UserError(f"{name}: expected one of {allowed}, got {value!r}")
        if win_length > n_fft:
            raise UserError(f"win_length: a window of {win_length} samples is longer than n_fft={n_fft}")
        if top_db is not None and log != "db":
            raise UserError("top_db: has a meaning with log=db only")
        self.sample_rate, self.n_fft, self.n_mels, self.power = sample_rate, n_fft, n_mels, power
        self.hop_length = hop_length or win_length // 2
        self.pad_mode, self.log, self.floor, self.top_db = pad_mode, log, floor, top_db
        self.outside = {"center": n_fft // 2, "same": max(0, (n_fft - self.hop_length) // 2), "none": 0}[padding]
        window = torch.hann_window(win_length)
        if normalized:
            window = window / window.square().sum().sqrt()
        filters = mel_filters(n_fft // 2 + 1, n_mels, sample_rate, f_min, f_max or sample_rate / 2, mel_scale, norm)
        self.register_buffer("window", centred_window(window, n_fft), persistent=False)
        self.register_buffer("filters", filters, persistent=False)

    @property
    def num_features(self) -> int:
        """F, the number of values per frame."""
        return self.n_mels

    def feature_lens(self, audio_lens: Tensor) -> Tensor:
        """Frames of clips of `audio_lens` samples."""
        return (1 + (audio_lens + 2 * self.outside - self.n_fft) // self.hop_length).clamp(min=1)

    def extract(self, samples: Tensor, audio_lens: Tensor, seed: Tensor | None) -> Tensor:
        """Features `[B, L, F]` of `[B, T]`; nothing is random."""
        if self.outside and self.pad_mode == "reflect":
            samples = mirror(samples, audio_lens, self.outside, self.outside)
        else:
            samples = pad(samples, (self.outside, self.outside))
        samples = pad(samples, (0, max(0, self.n_fft - samples.shape[1])))
        features = by_blocks(self._log_mel, samples.unfold(-1, self.n_fft, self.hop_length))
        if self.top_db is None:
            return features
        return torch.maximum(features, clip_maximum(features, self.feature_lens(audio_lens)) - self.top_db)

    def _log_mel(self, frames: Tensor) -> Tensor:
        mels = spectrum(frames * self.window, self.power) @ self.filters
        if self.log is None:
            return mels
        mels = mels.clamp(min=self.floor)
        if self.log == "ln":
            return torch.log(mels)
        return torch.log10(mels) * ((20 / self.power) if self.log == "db" else 1)

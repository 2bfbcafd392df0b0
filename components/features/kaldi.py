"""Kaldi's filter-bank features and cepstra (Povey et al. 2011).

Shapes: B batch, T samples, L frames, W samples of a frame, F features.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from components.augment.keyed import hash_normal, stream
from components.features.framing import by_blocks, mirror, spectrum
from components.features.frontend import Frontend
from components.features.mel import kaldi_mel_filters
from utils.errors import UserError

_EPSILON = torch.finfo(torch.float32).eps

_WINDOWS = {
    "povey": lambda size: torch.hann_window(size, periodic=False).pow(0.85),
    "hanning": lambda size: torch.hann_window(size, periodic=False),
    "hamming": lambda size: torch.hamming_window(size, periodic=False),
    "rectangular": torch.ones,
}


class KaldiFbank(Frontend):
    """The features of Kaldi's `compute-fbank-feats`, which most speech recognisers are trained on.

    With `snip_edges` a clip of T samples has `1 + (T - W) // S` frames (W, S: samples of a window and of a shift), else
    `(T + S // 2) // S` with mirrored ends; at least one, of the clip with silence behind it (Kaldi drops such clips).

    Args:
        sample_rate: Hz.
        frame_length, frame_shift: milliseconds.
        window: "povey", "hanning", "hamming" or "rectangular".
        preemphasis: each sample less so much of the one before it.
        remove_dc: take off the mean of each frame first.
        dither: standard deviation of Gaussian noise on the samples after `scale`, 1.0 in Kaldi's recipes; only in
            training, and only where `forward` is given seeds: it is a function of those and of the position alone.
        snip_edges: whether only windows that lie inside the clip count.
        f_min, f_max: Hz; `f_max` is half the sample rate by default, and counts from there if it is negative.
        use_log: the natural logarithm.
        use_energy: put the logarithm of each frame's energy, at least that of `energy_floor`, before the mels.
        scale: what waveforms in [-1, 1] are multiplied by: 32768, as Kaldi reads 16-bit integers; 1 as Lhotse does it.

    Raises:
        UserError: the window is unknown or shorter than two samples, or `f_min`, `f_max` do not fit into the sample
            rate.
    """

    def __init__(
        self,
        sample_rate: int,
        n_mels: int = 80,
        frame_length: float = 25.0,
        frame_shift: float = 10.0,
        window: str = "povey",
        preemphasis: float = 0.97,
        remove_dc: bool = True,
        dither: float = 0.0,
        snip_edges: bool = True,
        f_min: float = 20.0,
        f_max: float | None = None,
        use_log: bool = True,
        use_energy: bool = False,
        energy_floor: float = 1.0,
        scale: float = 32768.0,
    ) -> None:
        super().__init__()
        self.sample_rate, self.n_mels, self.use_log, self.use_energy = sample_rate, n_mels, use_log, use_energy
        self.win_length, self.hop_length = int(sample_rate * frame_length / 1000), int(sample_rate * frame_shift / 1000)
        if window not in _WINDOWS:
            raise UserError(f"window: expected one of {', '.join(_WINDOWS)}, got {window!r}")
        if self.win_length < 2 or self.hop_length < 1:
            raise UserError(f"frames of {frame_length} ms every {frame_shift} ms are too short at {sample_rate} Hz")
        self.preemphasis, self.remove_dc, self.dither, self.scale = preemphasis, remove_dc, dither, scale
        self.snip_edges, self.energy_floor = snip_edges, max(energy_floor, _EPSILON)
        n_fft = 1 << (self.win_length - 1).bit_length()
        nyquist = sample_rate / 2
        f_max = nyquist if f_max is None else f_max + nyquist if f_max <= 0 else f_max
        self.register_buffer(
            "window", pad(_WINDOWS[window](self.win_length), (0, n_fft - self.win_length)), persistent=False
        )
        self.register_buffer("filters", kaldi_mel_filters(n_fft, n_mels, sample_rate, f_min, f_max), persistent=False)

    @property
    def num_features(self) -> int:
        """F, the number of values per frame."""
        return self.n_mels + self.use_energy

    def feature_lens(self, audio_lens: Tensor) -> Tensor:
        """Frames of clips of `audio_lens` samples."""
        if self.snip_edges:
            return (1 + (audio_lens - self.win_length) // self.hop_length).clamp(min=1)
        return ((audio_lens + self.hop_length // 2) // self.hop_length).clamp(min=1)

    def extract(self, samples: Tensor, audio_lens: Tensor, seed: Tensor | None) -> Tensor:
        """Features `[B, L, F]` of `[B, T]`; `seed [B]` is that of the dither."""
        samples = samples * self.scale
        if self.dither and self.training and seed is not None:
            samples = samples + self.dither * hash_normal(seed ^ stream("dither"), samples.shape[1])
        return by_blocks(self._features, self._frames(samples, audio_lens))

    def _frames(self, samples: Tensor, audio_lens: Tensor) -> Tensor:
        size, shift = self.win_length, self.hop_length
        if self.snip_edges:
            return pad(samples, (0, max(0, size - samples.shape[1]))).unfold(-1, size, shift)
        num_frames = max(1, (samples.shape[1] + shift // 2) // shift)
        left = size // 2 - shift // 2  # the middle of a window is the middle of its shift
        skipped = max(0, -left)
        samples = mirror(samples, audio_lens, max(0, left), size + skipped, repeat_edge=True)
        return samples[:, skipped:].unfold(-1, size, shift)[:, :num_frames]

    def _features(self, frames: Tensor) -> Tensor:
        if self.remove_dc:
            frames = frames - frames.mean(-1, keepdim=True)
        first = frames[..., :1] * (1 - self.preemphasis)
        others = torch.sub(frames[..., 1:], frames[..., :-1], alpha=self.preemphasis)
        zeros = frames.new_zeros(()).expand(*frames.shape[:2], len(self.window) - self.win_length)
        power = spectrum(torch.cat([first, others, zeros], dim=-1).mul_(self.window))
        mels = power @ self.filters
        if self.use_log:
            mels = torch.log(mels.clamp(min=_EPSILON))
        return torch.cat([self._log_energy(frames), mels], dim=-1) if self.use_energy else mels

    def _log_energy(self, frames: Tensor) -> Tensor:
        return torch.log(frames.square().sum(-1, keepdim=True).clamp(min=self.energy_floor))


class Mfcc(KaldiFbank):
    """The cepstra of Kaldi's `compute-mfcc-feats`: a cosine transform of `KaldiFbank`, liftered.

    Args:
        num_ceps: F, how many are kept, at most `n_mels`.
        cepstral_lifter: Q of the weights `1 + Q / 2 sin(pi k / Q)`; 0: no weights.
        use_energy: the frame's log-energy in the place of the first.
        The others: as `KaldiFbank`.

    Raises:
        UserError: as `KaldiFbank`, or `num_ceps` is larger than `n_mels`.
    """

    def __init__(
        self,
        sample_rate: int,
        num_ceps: int = 13,
        n_mels: int = 23,
        cepstral_lifter: float = 22.0,
        frame_length: float = 25.0,
        frame_shift: float = 10.0,
        window: str = "povey",
        preemphasis: float = 0.97,
        remove_dc: bool = True,
        dither: float = 0.0,
        snip_edges: bool = True,
        f_min: float = 20.0,
        f_max: float | None = None,
        use_energy: bool = False,
        energy_floor: float = 1.0,
        scale: float = 32768.0,
    ) -> None:
        super().__init__(
            sample_rate, n_mels, frame_length, frame_shift, window, preemphasis, remove_dc, dither, snip_edges,
            f_min, f_max, use_energy=use_energy, energy_floor=energy_floor, scale=scale,
        )  # fmt: skip
        if num_ceps > n_mels:
            raise UserError(f"num_ceps: {num_ceps} cepstra can not be had from {n_mels} mels")
        self.num_ceps = num_ceps
        self.register_buffer("cosines", _cosines(n_mels, num_ceps, cepstral_lifter), persistent=False)

    @property
    def num_features(self) -> int:
        """F, the number of values per frame."""
        return self.num_ceps

    def _features(self, frames: Tensor) -> Tensor:
        features = super()._features(frames)
        if not self.use_energy:
            return features @ self.cosines
        return torch.cat([features[..., :1], features[..., 1:] @ self.cosines[:, 1:]], dim=-1)


def _cosines(n_mels: int, num_ceps: int, lifter: float) -> Tensor:
    """The orthonormal cosine transform (DCT-II) with its weights, `[n_mels, num_ceps]`."""
    k = torch.arange(num_ceps, dtype=torch.float64)
    middle = torch.arange(n_mels, dtype=torch.float64).unsqueeze(1) + 0.5
    matrix = math.sqrt(2 / n_mels) * torch.cos(math.pi / n_mels * middle * k)
    matrix[:, 0] = math.sqrt(1 / n_mels)
    if lifter:
        matrix = matrix * (1 + 0.5 * lifter * torch.sin(math.pi * k / lifter))
    return matrix.float()

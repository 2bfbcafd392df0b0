"""A clip's spectrum against that of its own reference.  Shapes: T samples, L frames, N bins, F mels, C coefficients."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from components.features.mel import mel_filters
from components.metrics.base import PairedMetric, Unscorable
from components.metrics.clips import Clip
from utils.errors import UserError

_QUIETEST = 1e-10  # power: -100 dB of a full-scale tone


def power_spectrogram(samples: np.ndarray, window_length: int, hop_length: int) -> np.ndarray:
    """`[T]` to `[L, N]` float64, Hann window, frame `l` centred on sample `l * hop_length`; a full-scale tone has 1."""
    window = np.hanning(window_length + 1)[:-1]
    half = window_length // 2
    padded = np.pad(np.float64(samples), (half, half))
    frames = np.lib.stride_tricks.sliding_window_view(padded, window_length)[::hop_length]
    spectrum = np.fft.rfft(frames * window, axis=1)
    return np.square(np.abs(spectrum)) * (2 / window.sum()) ** 2


def log_spectral_distance(generated: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Of power spectrograms `[L, N]` for each frame `[L]`, dB (Gray & Markel 1976, IEEE TASSP 24).

    `sqrt(mean_n (10 log10 (P_n / Q_n))^2)`; powers below -100 dB of full scale count as that.
    """
    difference = 10 * np.log10(np.maximum(reference, _QUIETEST) / np.maximum(generated, _QUIETEST))
    return np.sqrt(np.square(difference).mean(1))


class LogSpectralDistance(PairedMetric):
    """Root mean square difference of log spectra in dB, the mean over frames.

    Where the reference is silent and the output is not (or the other way round) a frame is tens of dB off: a little
    noise in pauses outweighs the speech. `frames: speech` looks at the frames where the reference speaks.

    Args:
        f_min, f_max: Hz; the band that is looked at, all by default. What a sample rate does not hold is refused.
        frames: "all", or "speech": those of the reference within `speech_range` of its loudest.
        speech_range: dB.
        window_seconds, hop_seconds: of the analysis.
        options: of `PairedMetric`.

    Raises:
        UserError: a band without width, or unknown frames.
    """

    unit = "dB"
    higher_is_better = False
    needs_sound = False

    def __init__(
        self,
        f_min: float = 0.0,
        f_max: float | None = None,
        frames: str = "all",
        speech_range: float = 40.0,
        window_seconds: float = 0.032,
        hop_seconds: float = 0.008,
        **options: Any,
    ) -> None:
        if frames not in ("all", "speech"):
            raise UserError(f"frames: expected all or speech, got {frames!r}")
        if f_min < 0 or (f_max is not None and f_max <= f_min):
            raise UserError(f"f_min, f_max: {f_min} to {f_max} Hz is no band")
        self.f_min, self.f_max, self.frames, self.speech_range = f_min, f_max, frames, speech_range
        self.window_seconds, self.hop_seconds = window_seconds, hop_seconds
        super().__init__(**options)

    def score(self, generated: Clip, reference: Clip) -> float:
        """dB of a pair."""
        rate = generated.sample_rate
        if self.f_min >= rate / 2:
            raise Unscorable(f"{rate} Hz holds nothing above {self.f_min:g} Hz")
        window, hop = 2 * round(self.window_seconds * rate / 2), max(1, round(self.hop_seconds * rate))
        spectra = [power_spectrogram(clip.samples, window, hop) for clip in (generated, reference)]
        frequencies = np.arange(window // 2 + 1) * rate / window
        band = (frequencies >= self.f_min) & (frequencies <= (self.f_max or rate / 2))
        distances = log_spectral_distance(*(spectrum[:, band] for spectrum in spectra))
        if self.frames == "all":
            return float(distances.mean())
        energy = 10 * np.log10(np.maximum(spectra[1].sum(1), _QUIETEST))
        if energy.max() < -90:
            raise Unscorable("silent reference")
        return float(distances[energy >= energy.max() - self.speech_range].mean())


@lru_cache(maxsize=8)
def _filters(num_bins: int, n_mels: int, sample_rate: int) -> np.ndarray:
    return mel_filters(num_bins, n_mels, sample_rate, 0.0, sample_rate / 2).double().numpy()


def mel_cepstrum(samples: np.ndarray, sample_rate: int, num_coefficients: int, n_mels: int = 40) -> np.ndarray:
    """Cepstrum of the log power mel spectrum, without the level `c_0`: `[T]` to `[L, C]`, 10 ms a frame.

    `c_m = 1/F sum_f ln P_f cos(pi m (f + 1/2) / F)`, so that `ln P_f = c_0 + 2 sum_m c_m cos(...)`.
    """
    window = 2 * round(0.016 * sample_rate)
    power = power_spectrogram(samples, window, round(0.01 * sample_rate))
    # -80 dB: below it is silence, whose cepstrum would be noise
    log_mels = np.log(np.maximum(power @ _filters(power.shape[1], n_mels, sample_rate), 1e-8))
    orders, mels = np.arange(1, num_coefficients + 1), np.arange(n_mels)
    return log_mels @ (np.cos(np.pi * np.outer(mels + 0.5, orders) / n_mels) / n_mels)


def cepstral_distances(generated: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Mel cepstral distortion of all pairs of frames, `[L, C]`, `[L', C]` to `[L, L']` dB (Kubichek 1993).

    `10 / ln 10 * sqrt(2 sum_m (c_m - c'_m)^2)`.
    """
    squares = np.square(generated).sum(1)[:, None] + np.square(reference).sum(1) - 2 * generated @ reference.T
    return 10 / np.log(10) * np.sqrt(2 * np.maximum(squares, 0))


def dynamic_time_warping(costs: np.ndarray) -> list[tuple[int, int]]:
    """The cheapest path through `[L, L']` from the first to the last pair of frames, by steps (1, 1), (1, 0), (0, 1)
    (Sakoe & Chiba 1978, IEEE TASSP 26).
    """
    rows, columns = costs.shape
    total = np.full((rows + 1, columns + 1), np.inf)
    total[0, 0] = 0.0
    for diagonal in range(rows + columns - 1):  # all cells of one diagonal at once
        i = np.arange(max(0, diagonal - columns + 1), min(rows, diagonal + 1))
        j = diagonal - i
        before = np.minimum(np.minimum(total[i, j], total[i, j + 1]), total[i + 1, j])
        total[i + 1, j + 1] = costs[i, j] + before
    path = [(rows - 1, columns - 1)]
    while path[-1] != (0, 0):
        i, j = path[-1]
        steps = ((i - 1, j - 1), (i - 1, j), (i, j - 1))
        path.append(min(steps, key=lambda cell: total[cell[0] + 1, cell[1] + 1]))
    return path[::-1]


class MelCepstralDistortion(PairedMetric):
    """Distance of mel cepstra in dB, the mean over frames (Kubichek 1993); the level of the clip does not count.

    The cepstrum is that of a mel spectrum. Those of WORLD or SPTK are others, and so are their numbers.

    Args:
        num_coefficients: from the first; the zeroth is the level.
        align: "dtw" lets time warp, and clips of any lengths be compared; "none" goes frame by frame.
        options: of `PairedMetric`.

    Raises:
        UserError: an unknown alignment.
    """

    unit = "dB"
    higher_is_better = False

    def __init__(self, num_coefficients: int = 13, align: str = "dtw", **options: Any) -> None:
        if align not in ("dtw", "none"):
            raise UserError(f"align: expected dtw or none, got {align!r}")
        self.num_coefficients, self.align = num_coefficients, align
        super().__init__(**({"max_length_difference": None} if align == "dtw" else {}) | options)

    def score(self, generated: Clip, reference: Clip) -> float:
        """dB of a pair."""
        one, other = (
            mel_cepstrum(clip.samples, clip.sample_rate, self.num_coefficients) for clip in (generated, reference)
        )
        distances = cepstral_distances(one, other)
        if self.align == "none":
            return float(np.diagonal(distances).mean())
        return float(np.mean([distances[cell] for cell in dynamic_time_warping(distances)]))


class MultiResolutionStft(PairedMetric):
    """Spectral convergence plus L1 of log magnitudes, the mean over resolutions (Yamamoto et al. 2020, 1910.11480).

    Args:
        fft_sizes, hop_lengths, win_lengths: samples, one of each for a resolution; the paper's by default, for 24 kHz.
        options: of `PairedMetric`.

    Raises:
        UserError: not as many of each.
    """

    higher_is_better = False
    needs_sound = False

    def __init__(
        self,
        fft_sizes: Sequence[int] = (1024, 2048, 512),
        hop_lengths: Sequence[int] = (120, 240, 50),
        win_lengths: Sequence[int] = (600, 1200, 240),
        **options: Any,
    ) -> None:
        if any(len(one) != len(other) for one, other in pairwise((fft_sizes, hop_lengths, win_lengths))):
            raise UserError("fft_sizes, hop_lengths, win_lengths: as many of each are needed")
        self.resolutions = list(zip(fft_sizes, hop_lengths, win_lengths))
        super().__init__(**options)

    def score(self, generated: Clip, reference: Clip) -> float:
        """Of a pair."""
        x, y = (torch.from_numpy(np.float64(clip.samples)) for clip in (generated, reference))
        if len(x) <= max(size for size, _, _ in self.resolutions) // 2:
            raise Unscorable("shorter than half a window")
        total = 0.0
        for n_fft, hop, win in self.resolutions:
            window = torch.hann_window(win, dtype=torch.float64)
            options = {"hop_length": hop, "win_length": win, "window": window, "return_complex": True}
            a, b = (torch.stft(signal, n_fft, **options).abs().clamp(min=1e-4) for signal in (x, y))
            total += float(torch.linalg.norm(b - a) / torch.linalg.norm(b) + (b.log() - a.log()).abs().mean())
        return total / len(self.resolutions)

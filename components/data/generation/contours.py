"""How loud and how high a recording is, frame by frame.  Shapes: T samples, L frames, W samples of a window, N lags."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from components.data.generation.clip import Clip, num_frames
from utils.errors import UserError

Curve = Callable[[Tensor, int], Tensor]

_TINY = 1e-10
# A frame is voiced where a period explains so much of it, and where it is within so many dB of the loudest.
_VOICED, _AUDIBLE_DB = 0.7, 40.0
# The first peak that is nearly the highest is the period; higher ones at its multiples differ by noise.
_FIRST_PEAK = 0.9
# Voiced frames lie above this, unvoiced ones at 0.
_LOWEST_VOICED = 0.2


class EnergyCurve:
    """Energy around each latent frame in dB, from 0 at the floor to 1 at full scale; `[1, T]` to float32 `[L]`.

    Args:
        hop_length: samples of a latent frame.
        window_length: samples, centred on a frame; by default two hops.
        floor_db: below full scale; what is fainter counts as this.

    Raises:
        UserError: the floor is not below 0.
    """

    def __init__(self, hop_length: int, window_length: int | None = None, floor_db: float = -60.0) -> None:
        if floor_db >= 0:
            raise UserError(f"EnergyCurve: floor_db lies below 0 dB, full scale, not at {floor_db}")
        self.hop_length, self.window_length, self.floor_db = hop_length, window_length or 2 * hop_length, floor_db

    def __call__(self, waveform: Tensor, sample_rate: int) -> Tensor:
        frames = _frames(waveform, self.window_length, self.hop_length)
        decibels = 10 * np.log10(np.square(frames).mean(axis=1) + _TINY)
        return torch.from_numpy(np.clip(1 - decibels / self.floor_db, 0, None).astype(np.float32))


class PitchCurve:
    """Pitch of each latent frame on a logarithmic scale, 0.2 at `f_min` to 1 at `f_max`, 0 where there is none.

    By normalised cross-correlation (Talkin 1995, "A robust algorithm for pitch tracking"), each frame by itself, then a
    median over three frames against jumps by an octave. `[1, T]` to float32 `[L]`.

    Args:
        hop_length: samples of a latent frame.
        f_min, f_max: Hz, the range of pitches.

    Raises:
        UserError: `f_min` is not below `f_max`.
    """

    def __init__(self, hop_length: int, f_min: float = 60.0, f_max: float = 400.0) -> None:
        if not 0 < f_min < f_max:
            raise UserError(f"PitchCurve: f_min must be above 0 and below f_max, not {f_min} and {f_max}")
        self.hop_length, self.f_min, self.f_max = hop_length, f_min, f_max

    def __call__(self, waveform: Tensor, sample_rate: int) -> Tensor:
        hertz = self.hertz(waveform, sample_rate)
        share = torch.log(hertz.clamp(self.f_min, self.f_max) / self.f_min) / np.log(self.f_max / self.f_min)
        return torch.where(hertz > 0, _LOWEST_VOICED + (1 - _LOWEST_VOICED) * share, 0.0)

    def hertz(self, waveform: Tensor, sample_rate: int) -> Tensor:
        """The pitch in Hz, 0 where there is none; `[1, T]` to float32 `[L]`."""
        shortest, longest = max(2, int(sample_rate / self.f_max)), int(np.ceil(sample_rate / self.f_min))
        # One lag more on either side, between which a peak can be told; and room for a window at the longest.
        frames = _frames(waveform, 2 * (longest + 1), self.hop_length)
        similarity = _similarity(frames, longest + 1, shortest - 1, longest + 1)
        lags, heights = _first_peak(similarity)
        power = np.square(frames).mean(axis=1)
        audible = power > max(power.max() * 10 ** (-_AUDIBLE_DB / 10), _TINY)
        hertz = np.where(audible & (heights > _VOICED), sample_rate / (lags + shortest - 1), 0.0)
        return torch.from_numpy(_median_of_three(hertz).astype(np.float32))


class Contour:
    """Curves of the target at the latent rate, side by side: `[L, C]`.

    Args:
        curves: name -> `(waveform [1, T], sample_rate) -> [L]`; null removes one.
        stream: its name.

    Raises:
        UserError: no curve is left.
    """

    def __init__(self, curves: Mapping[str, Curve | None], stream: str = "contour") -> None:
        self.curves = {name: curve for name, curve in curves.items() if curve is not None}
        self.stream, self.kinds = stream, {stream: len(self.curves)}
        if not self.curves:
            raise UserError("Contour: there is no curve in it")

    def __call__(self, clip: Clip) -> dict[str, Any]:
        drawn = [curve(clip.waveform, clip.sample_rate) for curve in self.curves.values()]
        return {self.stream: torch.stack(drawn, dim=1)}


def _frames(waveform: Tensor, length: int, hop_length: int) -> np.ndarray:
    """Windows of `length` samples around the middle of each latent frame, float64 `[L, W]`; silence outside."""
    samples = waveform[0].numpy().astype(np.float64)
    count = num_frames(len(samples), hop_length)
    before = max(0, (length - hop_length) // 2)
    padded = np.pad(samples, (before, max(0, count * hop_length + length - len(samples))))
    first = max(0, (hop_length - length) // 2)
    return np.lib.stride_tricks.sliding_window_view(padded[first:], length)[::hop_length][:count]


def _similarity(frames: np.ndarray, window: int, shortest: int, longest: int) -> np.ndarray:
    """Cosine between the first `window` samples of each frame and as many at each lag; `[L, W]` to `[L, N]`.

    Frames hold at least `window + longest` samples.
    """
    size = 1 << (frames.shape[1] + window - 1).bit_length()
    spectrum = np.conj(np.fft.rfft(frames[:, :window], size)) * np.fft.rfft(frames, size)
    product = np.fft.irfft(spectrum, size)[:, shortest : longest + 1]
    running = np.pad(np.cumsum(np.square(frames), axis=1), ((0, 0), (1, 0)))
    lags = np.arange(shortest, longest + 1)
    energy = running[:, lags + window] - running[:, lags]
    return product / np.sqrt(running[:, window : window + 1] * energy + _TINY**2).clip(min=_TINY)


def _first_peak(similarity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where, to a fraction of a lag, and how high each row's first high peak is; `[L, N]` to `[L]` twice."""
    inner = similarity[:, 1:-1]
    is_peak = (inner >= similarity[:, :-2]) & (inner > similarity[:, 2:])
    heights = np.where(is_peak, inner, -1.0)
    highest = heights.max(axis=1, keepdims=True)
    index = np.argmax(heights >= _FIRST_PEAK * np.maximum(highest, 0), axis=1) + 1
    rows = np.arange(len(similarity))
    left, middle, right = (similarity[rows, index + shift] for shift in (-1, 0, 1))
    curvature = left - 2 * middle + right
    shift = np.where(curvature < 0, 0.5 * (left - right) / np.minimum(curvature, -_TINY), 0.0)
    return index + np.clip(shift, -0.5, 0.5), np.where(is_peak.any(axis=1), middle, 0.0)


def _median_of_three(values: np.ndarray) -> np.ndarray:
    """Each voiced value between two voiced ones replaced by the median of the three; `[L]`."""
    if len(values) < 3:
        return values
    triples = np.lib.stride_tricks.sliding_window_view(values, 3)
    smooth = values.copy()
    smooth[1:-1] = np.where((triples > 0).all(axis=1), np.median(triples, axis=1), values[1:-1])
    return smooth

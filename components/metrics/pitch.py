"""Pitch and energy of a clip against those of its own reference.  Shapes: T samples, L frames."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from components.metrics.base import PairedMetric, Unscorable
from components.metrics.clips import Clip
from utils.imports import require

_BLOCK = 512  # frames worked on at once
_DEPTH = 0.03  # of YIN's normalised difference: valleys that count as equally deep


class PitchTracker(Protocol):
    """Anything that says how high a voice is; equal trackers share the work on a clip."""

    def track(self, samples: np.ndarray, sample_rate: int) -> np.ndarray:
        """`[T]` to `[L]` Hz, 0 where there is no voice; clips of one length have one L."""
        ...


@dataclass(frozen=True)
class YinPitch:
    """YIN (de Cheveigne & Kawahara 2002, JASA 111): the lag at which a frame is most like itself.

    Where the paper takes the first valley below the threshold, here it is the first that is nearly as deep as the
    deepest: fewer errors of an octave, so that the threshold can be wide enough to hear most of a voice.

    Args:
        f_min, f_max: Hz, where pitch is looked for.
        hop_seconds: between frames.
        threshold: of the normalised difference; a frame whose deepest valley lies above has no voice.
        quietest: dB below the clip's loudest frame; what is quieter has no voice.
    """

    f_min: float = 60.0
    f_max: float = 500.0
    hop_seconds: float = 0.01
    threshold: float = 0.3
    quietest: float = 40.0

    def track(self, samples: np.ndarray, sample_rate: int) -> np.ndarray:
        """`[T]` to `[L]` Hz, 0 where there is no voice."""
        shortest, longest = math.floor(sample_rate / self.f_max), math.ceil(sample_rate / self.f_min) + 1
        size = 2 * longest  # of the part that is compared with itself `lag` samples later
        half = (size + longest) // 2
        padded = np.pad(np.float64(samples), (half, half + 1))
        frames = np.lib.stride_tricks.sliding_window_view(padded, size + longest)
        frames = frames[:: round(self.hop_seconds * sample_rate)]
        parts = [self._track(frames[i : i + _BLOCK], size, shortest, longest) for i in range(0, len(frames), _BLOCK)]
        lags, clear = (np.concatenate(part) for part in zip(*parts))
        energy = np.concatenate([np.square(frames[i : i + _BLOCK]).mean(1) for i in range(0, len(frames), _BLOCK)])
        loud = energy > max(energy.max() * 10 ** (-self.quietest / 10), 1e-12)
        return np.where(clear & loud, sample_rate / lags, 0.0)

    def _track(self, frames: np.ndarray, size: int, shortest: int, longest: int) -> tuple[np.ndarray, np.ndarray]:
        """Lag in samples, and whether there is a voice, of `[L, size + longest]`."""
        difference = _difference(frames, size, longest)
        lags = np.arange(1, longest)
        mean = np.cumsum(difference[:, 1:], axis=1) / lags
        normalised = difference[:, 1:] / np.maximum(mean, 1e-20)  # of lag 1, 2, ...; eq. 8
        valleys = np.zeros_like(normalised, dtype=bool)
        inner = normalised[:, 1:-1]
        valleys[:, 1:-1] = (inner <= normalised[:, :-2]) & (inner < normalised[:, 2:])
        valleys[:, : shortest - 1] = False
        deepest = np.where(valleys, normalised, np.inf).min(1, keepdims=True)
        valleys &= normalised <= deepest + _DEPTH
        first = valleys.argmax(1)
        clear = deepest[:, 0] < self.threshold
        rows = np.arange(len(frames))
        left, middle, right = (normalised[rows, np.clip(first + step, 0, len(lags) - 1)] for step in (-1, 0, 1))
        bend = left - 2 * middle + right
        shift = np.where(np.abs(bend) > 1e-12, 0.5 * (left - right) / np.where(bend == 0, 1, bend), 0.0)
        return lags[first] + np.clip(shift, -1, 1), clear


def _difference(frames: np.ndarray, size: int, longest: int) -> np.ndarray:
    """`sum_j (x_j - x_(j + lag))^2` over `size` samples, for lags from 0, `[L, longest]`; by FFT."""
    n_fft = 2 ** math.ceil(math.log2(frames.shape[1] + size))
    head = np.fft.rfft(frames[:, :size], n_fft)
    products = np.fft.irfft(np.fft.rfft(frames, n_fft) * head.conj(), n_fft)[:, :longest]
    sums = np.cumsum(np.pad(np.square(frames), ((0, 0), (1, 0))), axis=1)
    energies = sums[:, size : size + longest] - sums[:, :longest]
    return np.maximum(energies[:, :1] + energies - 2 * products, 0)


@dataclass(frozen=True)
class WorldPitch:
    """Harvest of WORLD (Morise 2017), by pyworld.

    Args:
        f_min, f_max: Hz, where pitch is looked for.
        hop_seconds: between frames.
    """

    f_min: float = 60.0
    f_max: float = 500.0
    hop_seconds: float = 0.01

    def track(self, samples: np.ndarray, sample_rate: int) -> np.ndarray:
        """`[T]` to `[L]` Hz, 0 where there is no voice.

        Raises:
            UserError: pyworld is not installed.
        """
        pyworld = require("pyworld", extra="world")
        options = {"f0_floor": self.f_min, "f0_ceil": self.f_max, "frame_period": 1000 * self.hop_seconds}
        return pyworld.harvest(np.float64(samples), sample_rate, **options)[0]


def energy_contour(samples: np.ndarray, sample_rate: int, frame_seconds: float, range_db: float = 60.0) -> np.ndarray:
    """Level of each frame in dB, `[T]` to `[L]`, at least one; `range_db` below the loudest is the lowest."""
    size = max(1, round(frame_seconds * sample_rate))
    padded = np.pad(np.float64(samples), (0, -len(samples) % size))
    power = np.square(padded).reshape(-1, size).mean(1)
    return 10 * np.log10(np.maximum(power, max(power.max() * 10 ** (-range_db / 10), 1e-12)))


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson's, of `[L]`.

    Raises:
        Unscorable: one does not vary.
    """
    one, other = one - one.mean(), other - other.mean()
    norm = float(np.linalg.norm(one) * np.linalg.norm(other))
    if norm < 1e-9:
        raise Unscorable("a contour without variation")
    return float(one @ other) / norm


class ContourCorrelation(PairedMetric):
    """Correlation of energy contours, in dB frame by frame: does the clip swell where it was told to?

    Args:
        frame_seconds: of a frame.
        range_db: what is further below the loudest frame counts as so far.
        options: of `PairedMetric`.
    """

    higher_is_better = True

    def __init__(self, frame_seconds: float = 0.02, range_db: float = 60.0, **options: Any) -> None:
        self.frame_seconds, self.range_db = frame_seconds, range_db
        super().__init__(**options)

    def score(self, generated: Clip, reference: Clip) -> float:
        """From -1 to 1."""
        one, other = (
            energy_contour(clip.samples, clip.sample_rate, self.frame_seconds, self.range_db)
            for clip in (generated, reference)
        )
        if len(one) < 3:
            raise Unscorable("fewer than 3 frames")
        return correlation(one, other)


class PitchMetric(PairedMetric):
    """Compares pitch frame by frame.

    Args:
        tracker: see `PitchTracker`; YIN by default.
        min_frames: voiced in both; a pair with fewer is skipped.
        options: of `PairedMetric`.
    """

    def __init__(self, tracker: Any = None, min_frames: int = 5, **options: Any) -> None:
        self.tracker, self.min_frames = tracker or YinPitch(), min_frames
        super().__init__(**options)

    def score(self, generated: Clip, reference: Clip) -> float:
        """Of a pair."""
        one, other = (
            clip.remember(("pitch", self.tracker), lambda clip=clip: self.tracker.track(clip.samples, clip.sample_rate))
            for clip in (generated, reference)
        )
        return self.compare(one, other)

    @abstractmethod
    def compare(self, generated: np.ndarray, reference: np.ndarray) -> float:
        """Of pitch `[L]`, Hz, 0 where there is no voice.

        Raises:
            Unscorable: there is too little to compare.
        """

    def both_voiced(self, generated: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The frames that have a voice in both.

        Raises:
            Unscorable: fewer than `min_frames`.
        """
        both = (generated > 0) & (reference > 0)
        if both.sum() < self.min_frames:
            raise Unscorable(f"fewer than {self.min_frames} frames voiced in both")
        return generated[both], reference[both]


class F0Rmse(PitchMetric):
    """Root mean square difference of pitch where both clips have a voice; an octave's error counts as any other.

    Args:
        in_cents: 1200 a factor of two, the same for low and high voices; else Hz.
        options: of `PitchMetric`.
    """

    higher_is_better = False

    def __init__(self, in_cents: bool = True, **options: Any) -> None:
        self.in_cents, self.unit = in_cents, "cents" if in_cents else "Hz"
        super().__init__(**options)

    def compare(self, generated: np.ndarray, reference: np.ndarray) -> float:
        """Cents or Hz."""
        one, other = self.both_voiced(generated, reference)
        difference = 1200 * np.log2(one / other) if self.in_cents else one - other
        return float(np.sqrt(np.square(difference).mean()))


class F0Correlation(PitchMetric):
    """Correlation of log pitch where both clips have a voice: the melody, whatever the voice."""

    higher_is_better = True

    def compare(self, generated: np.ndarray, reference: np.ndarray) -> float:
        """From -1 to 1."""
        one, other = self.both_voiced(generated, reference)
        return correlation(np.log(one), np.log(other))


class VoicingError(PitchMetric):
    """Share of frames where one clip has a voice and the other has none."""

    higher_is_better = False

    def compare(self, generated: np.ndarray, reference: np.ndarray) -> float:
        """From 0 to 1."""
        if (reference > 0).sum() < self.min_frames:
            raise Unscorable(f"fewer than {self.min_frames} voiced frames in the reference")
        return float(((generated > 0) != (reference > 0)).mean())

"""A clip against its own reference, sample by sample.  Shapes: T samples."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from components.metrics.base import JoiningMetric, Needs, PairedMetric, Unscorable
from components.metrics.clips import Clip
from utils.errors import UserError
from utils.imports import require


def si_sdr(estimate: np.ndarray, target: np.ndarray, zero_mean: bool = True) -> float:
    """Scale-invariant signal-to-distortion ratio of `[T]` in dB (Le Roux et al. 2019, arXiv:1811.02508, eq. 2).

    `10 log10 (|a s|^2 / |a s - e|^2)` with `a = e.s / |s|^2`; infinite for a scaled copy.
    """
    estimate, target = np.float64(estimate), np.float64(target)
    if zero_mean:
        estimate, target = estimate - estimate.mean(), target - target.mean()
    projected = (estimate @ target) / (target @ target) * target
    left = estimate - projected
    with np.errstate(divide="ignore"):
        return float(10 * np.log10((projected @ projected) / (left @ left)))


class SiSdr(PairedMetric):
    """Scale-invariant signal-to-distortion ratio in dB (Le Roux et al. 2019, arXiv:1811.02508).

    It asks for the phase of the reference: of what a vocoder or Griffin-Lim made it says nothing.

    Args:
        zero_mean: take off each signal's mean first.
        highest: dB; a better score counts as this, as that of a copy is infinite.
        options: of `PairedMetric`.
    """

    unit = "dB"
    higher_is_better = True

    def __init__(self, zero_mean: bool = True, highest: float = 100.0, **options: Any) -> None:
        self.zero_mean, self.highest = zero_mean, highest
        super().__init__(**options)

    def score(self, generated: Clip, reference: Clip) -> float:
        """dB of a pair."""
        return min(self.highest, si_sdr(generated.samples, reference.samples, self.zero_mean))


class Stoi(JoiningMetric):
    """Short-time objective intelligibility, by pystoi (Taal et al. 2011; extended: Jensen & Taal 2016).

    It looks at 384 ms of speech at once. Where there are not so many after silence is taken out, pystoi says 1e-5,
    which is no score: the clip is skipped and counted. Clips of single words want `join_by`.

    Args:
        extended: ESTOI, which also holds for modulated noise.
        options: of `JoiningMetric`.

    Raises:
        UserError: pystoi is not installed.
    """

    higher_is_better = True

    def __init__(self, extended: bool = False, **options: Any) -> None:
        require("pystoi", extra="metrics")
        self.extended = extended
        super().__init__(**options)

    @property
    def needs(self) -> Needs:
        return Needs(paired=True, reference=True, label=self.join_by, sample_rate=10_000)

    def score(self, generated: Clip, reference: Clip) -> float:
        """From about 0 to 1."""
        pystoi = require("pystoi", extra="metrics")
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            try:
                return pystoi.stoi(
                    np.float64(reference.samples), np.float64(generated.samples), generated.sample_rate, self.extended
                )
            except RuntimeWarning as warning:
                reason = "too little speech (384 ms)" if "Not enough STFT frames" in str(warning) else str(warning)
                raise Unscorable(reason) from None
            except ValueError:  # shorter than one window
                raise Unscorable("too little speech (384 ms)") from None


class Pesq(JoiningMetric):
    """Perceptual evaluation of speech quality, by the package pesq (ITU-T P.862, wide band P.862.2): MOS-LQO.

    Args:
        band: "nb" hears 8 kHz, "wb" 16 kHz, to which clips are taken. Clips of less than 16 kHz in "wb" are refused: it
            would listen to nothing above their band.
        options: of `JoiningMetric`.

    Raises:
        UserError: pesq is not installed, or an unknown band.
    """

    higher_is_better = True
    unit = "MOS"
    min_seconds = 0.25

    def __init__(self, band: str = "nb", **options: Any) -> None:
        require("pesq", extra="metrics")
        if band not in ("nb", "wb"):
            raise UserError(f"band: expected nb or wb, got {band!r}")
        self.band = band
        super().__init__(**options)

    @property
    def sample_rate(self) -> int:
        """Hz that clips are taken to."""
        return 8_000 if self.band == "nb" else 16_000

    @property
    def needs(self) -> Needs:
        return Needs(
            paired=True, reference=True, label=self.join_by, min_seconds=self.min_seconds, sample_rate=self.sample_rate
        )

    def score(self, generated: Clip, reference: Clip) -> float:
        """About 1 to 4.6."""
        pesq = require("pesq", extra="metrics")
        if self.band == "wb" and generated.sample_rate < 16_000:
            raise Unscorable(f"{generated.sample_rate} Hz is no wide band")
        one, other = reference.at(self.sample_rate), generated.at(self.sample_rate)
        try:
            return pesq.pesq(self.sample_rate, one, other, self.band)
        except pesq.NoUtterancesError:
            raise Unscorable("no speech in the reference") from None
        except pesq.BufferTooShortError:
            raise Unscorable("shorter than 0.25 s") from None
        except pesq.PesqError as error:
            raise Unscorable(f"pesq: {error}") from None

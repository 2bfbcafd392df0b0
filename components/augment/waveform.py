"""Waveform augmentations for a dataset: `(waveform [C, T], sample_rate) -> waveform [C, T']`.

They draw from torch's global generator, which whoever reads the dataset has seeded for the sample at hand. Sums and
Fourier transforms are numpy's: torch's differ in the last bit with the number of threads, which a data worker and the
main process do not share.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from components.augment.draws import check_probability, check_range, happens, index_below, uniform
from utils.errors import UserError


class RandomGain:
    """Scale by a gain drawn uniformly in decibels from [min_db, max_db]."""

    def __init__(self, min_db: float = -12.0, max_db: float = 6.0) -> None:
        self.min_db, self.max_db = check_range(min_db, max_db, "RandomGain", "gain in dB")

    def __call__(self, waveform: Tensor, sample_rate: int) -> Tensor:
        return waveform * 10 ** (uniform(self.min_db, self.max_db) / 20)


class TimeShift:
    """Delay or advance by up to `max_seconds`, or half the clip: zeros come in, what leaves is lost; the length stays.

    With `circular` what leaves at one end comes in at the other, for sounds without a beginning.
    """

    def __init__(self, max_seconds: float = 0.1, circular: bool = False) -> None:
        self.max_seconds, self.circular = max_seconds, circular

    def __call__(self, waveform: Tensor, sample_rate: int) -> Tensor:
        length = waveform.shape[-1]
        reach = min(self.max_seconds * sample_rate, length if self.circular else length // 2)
        shift = round(uniform(-reach, reach))
        if self.circular:
            return waveform.roll(shift, dims=-1)
        return pad(waveform, (shift, -shift))


class AddNoise:
    """Add Gaussian noise, coloured at random between white and brown, at a signal-to-noise ratio drawn from a range.

    Args:
        min_snr_db, max_snr_db: dB against the clip's own power.
        p: probability of adding any.
    """

    def __init__(self, min_snr_db: float = 5.0, max_snr_db: float = 40.0, p: float = 0.5) -> None:
        self.min_snr_db, self.max_snr_db = check_range(min_snr_db, max_snr_db, "AddNoise", "ratio in dB")
        self.p = check_probability(p, "AddNoise")

    def __call__(self, waveform: Tensor, sample_rate: int) -> Tensor:
        if not happens(self.p):
            return waveform
        slope, snr_db = uniform(0.0, 1.0), uniform(self.min_snr_db, self.max_snr_db)
        num_bins = waveform.shape[-1] // 2 + 1
        spectrum = torch.randn(len(waveform), num_bins, 2).numpy().view(np.complex64)[..., 0]  # of white noise
        bins = np.arange(num_bins, dtype=np.float32).clip(min=1)  # amplitude ~ 1 / f^slope
        noise = np.fft.irfft(spectrum / bins**slope, n=waveform.shape[-1]).astype(np.float32)
        scale = np.sqrt(np.square(waveform.numpy()).mean()) / max(np.sqrt(np.square(noise).mean()), 1e-8)
        return waveform + torch.from_numpy(noise) * float(scale * 10 ** (-snr_db / 20))


class RandomSpeed:
    """Play faster or slower, pitch and formants included, by a factor drawn uniformly from [min_speed, max_speed].

    Linear interpolation: cheap, and its faint aliasing is one more disturbance. `SpeedPerturb` resamples properly.
    """

    def __init__(self, min_speed: float = 0.9, max_speed: float = 1.1) -> None:
        self.min_speed, self.max_speed = check_range(min_speed, max_speed, "RandomSpeed", "speed")

    def __call__(self, waveform: Tensor, sample_rate: int) -> Tensor:
        length = max(1, round(waveform.shape[-1] / uniform(self.min_speed, self.max_speed)))
        return interpolate(waveform.unsqueeze(0), size=length, mode="linear", align_corners=False).squeeze(0)


class SpeedPerturb:
    """Play at one of a few speeds, pitch and formants included (Ko et al. 2015, "Audio augmentation for speech").

    A clip of T samples comes out with `round(T / factor)`; band-limited (soxr). What is said about times in a clip
    (alignments, segments) has to be divided by the factor too, so it does not go with this.

    Args:
        factors: speeds, each drawn alike; 1.1 is faster, and higher. A factor of 1 leaves the clip as it is.
    """

    def __init__(self, factors: list[float] | tuple[float, ...] = (0.9, 1.0, 1.1)) -> None:
        if not factors or min(factors) <= 0:
            raise UserError(f"SpeedPerturb: factors are speeds above 0, not {list(factors)}")
        self.factors = tuple(factors)

    def __call__(self, waveform: Tensor, sample_rate: int) -> Tensor:
        factor = self.factors[index_below(len(self.factors))]
        if factor == 1:
            return waveform
        import soxr

        resampled = soxr.resample(waveform.numpy().T, sample_rate * factor, sample_rate, quality="HQ")
        length = max(1, round(waveform.shape[-1] / factor))
        if not len(resampled):  # of a sample or two soxr makes none
            return waveform[:, :1].expand(-1, length).clone()
        filled = np.pad(resampled[:length], ((0, max(0, length - len(resampled))), (0, 0)), mode="edge")
        return torch.from_numpy(np.ascontiguousarray(filled.T))


class RandomCrop:
    """A piece of `seconds`.

    Args:
        seconds: length of the piece.
        place: where it is taken from.
        pad_short: put zeros behind a clip that is shorter, so that all come out alike; otherwise it stays whole.
    """

    def __init__(
        self, seconds: float, place: Literal["random", "start", "center"] = "random", pad_short: bool = False
    ) -> None:
        if seconds <= 0:
            raise UserError(f"RandomCrop: a piece of {seconds} s is none")
        self.seconds, self.place, self.pad_short = seconds, place, pad_short

    def __call__(self, waveform: Tensor, sample_rate: int) -> Tensor:
        length = max(1, round(self.seconds * sample_rate))
        spare = waveform.shape[-1] - length
        if spare <= 0:
            return pad(waveform, (0, -spare)) if self.pad_short else waveform
        if self.place == "random":
            start = index_below(spare + 1)
        else:
            start = spare // 2 if self.place == "center" else 0
        return waveform[..., start : start + length]

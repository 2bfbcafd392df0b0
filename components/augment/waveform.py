"""Waveform augmentations for a dataset: `(waveform [C, T], sample_rate) -> waveform [C, T']`.

They draw from torch's global generator, which whoever reads the dataset has seeded for the sample at hand.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(()))


class RandomGain:
    """Scale by a gain drawn uniformly in decibels from [min_db, max_db]."""

    def __init__(self, min_db: float = -12.0, max_db: float = 6.0) -> None:
        self.min_db, self.max_db = min_db, max_db

    def __call__(self, waveform: Tensor, sample_rate: int) -> Tensor:
        return waveform * 10 ** (_uniform(self.min_db, self.max_db) / 20)


class TimeShift:
    """Delay or advance by up to `max_seconds`, or half the clip: zeros come in, what leaves is lost; the length stays.

    With `circular` what leaves at one end comes in at the other, for sounds without a beginning.
    """

    def __init__(self, max_seconds: float = 0.1, circular: bool = False) -> None:
        self.max_seconds, self.circular = max_seconds, circular

    def __call__(self, waveform: Tensor, sample_rate: int) -> Tensor:
        length = waveform.shape[-1]
        reach = min(self.max_seconds * sample_rate, length if self.circular else length // 2)
        shift = round(_uniform(-reach, reach))
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
        self.min_snr_db, self.max_snr_db, self.p = min_snr_db, max_snr_db, p

    def __call__(self, waveform: Tensor, sample_rate: int) -> Tensor:
        if float(torch.rand(())) >= self.p:
            return waveform
        slope, snr_db = _uniform(0.0, 1.0), _uniform(self.min_snr_db, self.max_snr_db)
        spectrum = torch.fft.rfft(torch.randn_like(waveform))
        bins = torch.arange(spectrum.shape[-1]).clamp(min=1)  # amplitude ~ 1 / f^slope
        noise = torch.fft.irfft(spectrum / bins**slope, n=waveform.shape[-1])
        scale = waveform.square().mean().sqrt() / noise.square().mean().sqrt().clamp(min=1e-8)
        return waveform + noise * scale * 10 ** (-snr_db / 20)


class RandomSpeed:
    """Play faster or slower, pitch and formants included, by a factor drawn uniformly from [min_speed, max_speed].

    Linear interpolation: cheap, and its faint aliasing is one more disturbance.
    """

    def __init__(self, min_speed: float = 0.9, max_speed: float = 1.1) -> None:
        self.min_speed, self.max_speed = min_speed, max_speed

    def __call__(self, waveform: Tensor, sample_rate: int) -> Tensor:
        length = max(1, round(waveform.shape[-1] / _uniform(self.min_speed, self.max_speed)))
        return interpolate(waveform.unsqueeze(0), size=length, mode="linear", align_corners=False).squeeze(0)


class RandomCrop:
    """A piece of `seconds` from a random place; shorter clips stay whole."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self, waveform: Tensor, sample_rate: int) -> Tensor:
        length = round(self.seconds * sample_rate)
        spare = waveform.shape[-1] - length
        if spare <= 0:
            return waveform
        start = int(torch.randint(spare + 1, ()))
        return waveform[..., start : start + length]

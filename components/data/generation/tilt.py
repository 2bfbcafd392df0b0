"""Brighter and duller recordings.  Shapes: C channels, T samples."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from components.augment.draws import uniform

_PIVOT_HZ = 1000.0
_LOWEST_HZ = 50.0


class SpectralTilt:
    """Tilt the spectrum about 1 kHz by so many dB per octave, drawn uniformly up to `max_db_per_octave` either way.

    What another microphone, loudspeaker or vocoder does to a voice, and what tells nobody who speaks.
    """

    def __init__(self, max_db_per_octave: float = 3.0) -> None:
        self.max_db_per_octave = max_db_per_octave

    def __call__(self, waveform: Tensor, sample_rate: int) -> Tensor:
        """`[C, T]` to `[C, T]`."""
        slope = uniform(-self.max_db_per_octave, self.max_db_per_octave)
        length = waveform.shape[-1]
        hertz = np.fft.rfftfreq(length, 1 / sample_rate).clip(min=_LOWEST_HZ)
        gain = 10 ** (slope * np.log2(hertz / _PIVOT_HZ) / 20)
        tilted = np.fft.irfft(np.fft.rfft(waveform.numpy()) * gain, n=length)
        return torch.from_numpy(tilted.astype(np.float32))

"""What is measured of a segment of audio while it streams by.  Shapes: N samples, C channels, S spectral bins."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np

FULL_SCALE = 0.999  # 16-bit samples at their limit are 0.99997, 8-bit ones 0.992 and 1.0
_OVER = 1.001
_WINDOW_SECONDS = 0.025
_SILENCE_POWER = 1e-6  # -60 dBFS
_GATE_POWER = 1e-7  # -70 dBFS, the absolute gate of ITU-R BS.1770-4
_FFT = 1024
_MIN_SPECTRA, _MAX_SPECTRA = 8, 2048  # half a second to two minutes at 16 kHz tell the bandwidth
_CLIFF_DB = 25.0
_FLOOR_DB = 75.0


class Meter:
    """Sums over the blocks of one segment; memory does not grow with its length.

    Args:
        rate: Hz.
        channels: C of the blocks.
    """

    def __init__(self, rate: int, channels: int) -> None:
        self._rate = rate
        self._num_samples = self._num_non_finite = self._num_full_scale = 0
        self._peak = 0.0
        self._sums, self._powers = np.zeros(channels), np.zeros(channels)
        self._mix_power = 0.0
        self._num_windows = self._num_silent = self._num_loud = 0
        self._loud_power = 0.0
        self._spectrum, self._num_spectra = np.zeros(_FFT // 2 + 1), 0
        self._hash = hashlib.blake2b(digest_size=16)

    def update(self, block: np.ndarray) -> None:
        """Take in the next samples, float32 `[N, C]`."""
        self._num_samples += len(block)
        self._hash.update(np.ascontiguousarray(block))
        total = float(block.sum(dtype=np.float64))
        if not np.isfinite(total):
            self._num_non_finite += int((~np.isfinite(block)).sum())
            block = np.nan_to_num(block, nan=0.0, posinf=0.0, neginf=0.0)
        loudness = np.abs(block)
        highest = float(loudness.max(initial=0.0))
        self._peak = max(self._peak, highest)
        if highest >= FULL_SCALE:
            self._num_full_scale += int(((loudness >= FULL_SCALE) & (loudness <= _OVER)).sum())
        self._sums += block.sum(axis=0, dtype=np.float64)
        channel_powers = np.einsum("nc,nc->c", block, block, dtype=np.float64)
        self._powers += channel_powers
        mix = block[:, 0] if block.shape[1] == 1 else block.mean(axis=1)
        mix_power = float(np.dot(mix, mix))
        self._mix_power += mix_power
        if mix_power < 0.01 * channel_powers.mean():  # channels that cancel: look at one of them
            mix = block[:, int(channel_powers.argmax())]
        self._windows(mix)
        self._spectra(mix)

    def _windows(self, mix: np.ndarray) -> None:
        length = max(1, round(self._rate * _WINDOW_SECONDS))
        windows = mix[: len(mix) // length * length].reshape(-1, length)
        windows = windows - windows.mean(axis=1, keepdims=True)
        powers = np.einsum("sn,sn->s", windows, windows) / length
        self._num_windows += len(powers)
        self._num_silent += int((powers < _SILENCE_POWER).sum())
        loud = powers[powers >= _GATE_POWER]
        self._num_loud += len(loud)
        self._loud_power += float(loud.sum(dtype=np.float64))

    def _spectra(self, mix: np.ndarray) -> None:
        room = _MAX_SPECTRA - self._num_spectra
        frames = mix[: len(mix) // _FFT * _FFT].reshape(-1, _FFT)[: max(0, room)]
        if not len(frames):
            return
        spectra = np.fft.rfft((frames - frames.mean(axis=1, keepdims=True)) * np.hanning(_FFT).astype(np.float32))
        self._spectrum += (spectra.real**2 + spectra.imag**2).sum(axis=0)
        self._num_spectra += len(frames)

    def result(self) -> dict[str, Any]:
        """What was measured, ready for JSON: counts, `peak`, powers of full scale 1, `level_db` (dBFS of the windows
        above -70 dBFS; None where there is none), `bandwidth` (Hz; None where it can't be told), `hash`."""
        count = max(1, self._num_samples)
        means, powers = self._sums / count, self._powers / count
        return {
            "num_samples": self._num_samples,
            "num_non_finite": self._num_non_finite,
            "peak": round(self._peak, 5),
            "full_scale": self._num_full_scale / (count * len(means)),
            "dc": round(float(np.abs(means).max(initial=0.0)), 6),
            "power": float((powers - means**2).clip(0).mean()),
            "channel_powers": [float(f"{power:.4g}") for power in (powers - means**2).clip(0)],
            "mix_power": float(self._mix_power / count),
            "silent": round(self._num_silent / self._num_windows, 4) if self._num_windows else None,
            "level_db": round(10 * math.log10(self._loud_power / self._num_loud), 2) if self._num_loud else None,
            "bandwidth": bandwidth(self._spectrum, self._rate) if self._num_spectra >= _MIN_SPECTRA else None,
            "hash": self._hash.hexdigest(),
        }


def bandwidth(spectrum: np.ndarray, rate: int) -> float | None:
    """Where the content ends: the highest frequency above which the long-term spectrum has fallen off a cliff.

    A recording that was upsampled, or coded at a low rate, falls by tens of dB within a few hundred Hz and stays there;
    one that is merely dull declines slowly.

    Args:
        spectrum: `[S]` power, from 0 Hz to half the rate.
        rate: Hz.

    Returns:
        Hz; half the rate where there is no cliff; None for silence.
    """
    if spectrum.max(initial=0.0) <= 0:
        return None
    levels = 10 * np.log10(spectrum + spectrum.max() * 1e-14)
    levels = np.convolve(levels, np.ones(5) / 5, mode="same")[4:-4]
    highest_above = np.maximum.accumulate(levels[::-1])[::-1]
    reach = max(2, len(levels) // 24)  # about 4 % of the band
    drop = levels[:-reach] - highest_above[reach:]
    cliffs = np.flatnonzero((drop > _CLIFF_DB) & (highest_above[reach:] < levels.max() - _FLOOR_DB / 2))
    if not len(cliffs):
        return rate / 2
    return round((int(cliffs[-1]) + 4 + reach / 2) / (len(spectrum) - 1) * rate / 2, 1)

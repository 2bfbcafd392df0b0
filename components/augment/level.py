"""How loud a signal is.  Shapes: C channels, T samples."""

from __future__ import annotations

import numpy as np

# Frames this far below the loudest count as pauses.
_PAUSE_DB = 40.0
_FRAME_SECONDS = 0.02


def active_power(samples: np.ndarray, sample_rate: int) -> float:
    """Mean power of `[C, T]` over its active part: frames of 20 ms that are within 40 dB of the loudest.

    Pauses are left out, as in ITU-T P.56's active speech level, so that a clip with much silence around a word gets no
    fainter noise than the word alone. 0 for digital silence.
    """
    length = round(_FRAME_SECONDS * sample_rate)
    num_frames = samples.shape[-1] // length
    if num_frames < 2:
        return float(np.mean(np.square(samples, dtype=np.float64)))
    frames = samples[:, : num_frames * length].reshape(len(samples), num_frames, length)
    power = np.einsum("cft,cft->f", frames, frames) / (len(samples) * length)
    return float(power[power >= power.max() * 10 ** (-_PAUSE_DB / 10)].mean())

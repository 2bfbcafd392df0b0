"""Banks of triangular mel filters.  Shapes: N bins of the spectrum, F mels."""

from __future__ import annotations

import logging
import math

import torch
from torch import Tensor

from utils.errors import UserError

logger = logging.getLogger(__name__)

# Slaney's scale (Auditory Toolbox, 1998): linear below 1 kHz, 15 mels there; logarithmic above, 27 mels to 6.4 kHz.
_SLANEY_HZ_PER_MEL = 200 / 3
_SLANEY_CORNER_HZ, _SLANEY_CORNER_MEL = 1000.0, 15.0
_SLANEY_LOG_STEP = math.log(6.4) / 27


def mel_filters(
    num_bins: int,
    n_mels: int,
    sample_rate: int,
    f_min: float,
    f_max: float,
    scale: str = "htk",
    norm: str | None = None,
) -> Tensor:
    """Filters equally spaced on a mel scale, triangular over frequency; `[num_bins, n_mels]` float32.

    Args:
        num_bins: bins from 0 Hz to half the sample rate, both included.
        scale: "htk" or "slaney".
        norm: None for filters of height one, "slaney" for filters of equal area (2 / width in Hz).

    Raises:
        UserError: `f_min`, `f_max` do not lie in order between 0 Hz and half the sample rate, or `scale` or `norm` is
            unknown.
    """
    check_band(f_min, f_max, sample_rate)
    if scale not in ("htk", "slaney"):
        raise UserError(f"mel scale: expected htk or slaney, got {scale!r}")
    if norm not in (None, "slaney"):
        raise UserError(f"norm of the mel filters: expected null or slaney, got {norm!r}")
    to_mel, to_hertz = (_htk_mel, _htk_hertz) if scale == "htk" else (_slaney_mel, _slaney_hertz)
    corners = to_hertz(torch.linspace(to_mel(f_min), to_mel(f_max), n_mels + 2, dtype=torch.float64))
    bins = torch.linspace(0, sample_rate / 2, num_bins, dtype=torch.float64)
    filters = _triangles(bins, corners)
    if norm == "slaney":
        filters = filters * (2 / (corners[2:] - corners[:-2]))
    return _checked(filters, sample_rate)


def kaldi_mel_filters(n_fft: int, n_mels: int, sample_rate: int, f_min: float, f_max: float) -> Tensor:
    """Kaldi's filters, triangular over mels rather than Hz, blind to the last bin; `[n_fft // 2 + 1, n_mels]` float32.

    Raises:
        UserError: as `mel_filters`.
    """
    check_band(f_min, f_max, sample_rate)
    lowest, highest = (1127 * math.log(1 + hertz / 700) for hertz in (f_min, f_max))
    # In single precision as Kaldi has it: what a bin near a filter's corner weighs depends on the rounding.
    corners = lowest + torch.arange(n_mels + 2) * ((highest - lowest) / (n_mels + 1))
    bins = torch.arange(n_fft // 2 + 1) * (sample_rate / n_fft)
    filters = _triangles(1127 * torch.log(1 + bins / 700), corners)
    filters[-1] = 0
    return _checked(filters, sample_rate)


def check_band(f_min: float, f_max: float, sample_rate: int) -> None:
    """Refuse a band that a sample rate does not hold.

    Raises:
        UserError: not `0 <= f_min < f_max <= sample_rate / 2`.
    """
    if not 0 <= f_min < f_max <= sample_rate / 2:
        raise UserError(f"mel filters from {f_min} to {f_max} Hz do not fit into a sample rate of {sample_rate} Hz")


def _triangles(bins: Tensor, corners: Tensor) -> Tensor:
    """Height one at each inner corner, zero at its neighbours; `[N]`, `[F + 2]` to `[N, F]`."""
    bins = bins.unsqueeze(1)
    rising = (bins - corners[:-2]) / (corners[1:-1] - corners[:-2])
    falling = (corners[2:] - bins) / (corners[2:] - corners[1:-1])
    return torch.minimum(rising, falling).clamp(min=0)


def _checked(filters: Tensor, sample_rate: int) -> Tensor:
    if num_empty := int((filters.amax(0) == 0).sum()):
        logger.warning(
            f"{num_empty} of {filters.shape[1]} mel filters lie between the bins of the spectrum and hear nothing: "
            f"take fewer mels or a longer n_fft (sample rate {sample_rate} Hz)"
        )
    return filters.float()


def _htk_mel(hertz: float) -> float:
    return 2595 * math.log10(1 + hertz / 700)


def _htk_hertz(mels: Tensor) -> Tensor:
    return 700 * (10 ** (mels / 2595) - 1)


def _slaney_mel(hertz: float) -> float:
    if hertz < _SLANEY_CORNER_HZ:
        return hertz / _SLANEY_HZ_PER_MEL
    return _SLANEY_CORNER_MEL + math.log(hertz / _SLANEY_CORNER_HZ) / _SLANEY_LOG_STEP


def _slaney_hertz(mels: Tensor) -> Tensor:
    above = _SLANEY_CORNER_HZ * torch.exp(_SLANEY_LOG_STEP * (mels - _SLANEY_CORNER_MEL))
    return torch.where(mels < _SLANEY_CORNER_MEL, mels * _SLANEY_HZ_PER_MEL, above)

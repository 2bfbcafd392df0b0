"""Reading audio files: any rate, any number of channels, in; mono float32 at one rate, out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

from utils.errors import UserError

# Outside this range a header is damaged: nothing records below 1 kHz or above 768 kHz.
_PLAUSIBLE_RATES = range(1_000, 768_001)


def load_audio(path: str | Path, sample_rate: int, channel: int | None = None) -> Tensor:
    """Decode a file.

    Args:
        sample_rate: Hz wanted; the file is resampled to it where its own differs.
        channel: which channel to take; None for the mean of all.

    Returns:
        `[1, T]` float32, nominally in [-1, 1].

    Raises:
        UserError: the file cannot be decoded, is empty, or holds NaN or infinite samples.
    """
    try:
        samples, file_rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        raise UserError(f"cannot read {path}: {_reason(path, error)}") from None
    if not len(samples):
        raise UserError(f"cannot read {path}: it holds no samples")
    if file_rate not in _PLAUSIBLE_RATES:
        raise UserError(f"cannot read {path}: its header claims an implausible rate of {file_rate} Hz")
    if channel is not None and channel >= samples.shape[1]:
        raise UserError(f"cannot take channel {channel} of {path}: it has {samples.shape[1]}")
    mono = samples.mean(axis=1) if channel is None else samples[:, channel]
    if not np.isfinite(mono).all():
        raise UserError(f"cannot read {path}: it holds NaN or infinite samples")
    return torch.from_numpy(resample(mono, file_rate, sample_rate)).unsqueeze(0)


def resample(samples: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """Band-limited resampling of `[T]` float32; at least one sample comes out."""
    if from_rate == to_rate:
        return np.ascontiguousarray(samples)
    import soxr

    resampled = soxr.resample(samples, from_rate, to_rate, quality="HQ")
    return resampled if len(resampled) else np.ascontiguousarray(samples[:1])


def _reason(path: str | Path, error: Exception) -> str:
    path = Path(path)
    if not path.exists():
        return "there is no such file"
    if path.is_dir():
        return "it is a folder"
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        return "it is empty"
    if head.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, not the audio (run `git lfs pull` in its repository)"
    if head[4:8] == b"ftyp":
        return "AAC/MP4 is not supported (convert it, e.g. with ffmpeg, to FLAC or WAV)"
    return str(getattr(error, "error_string", error)).rstrip(".")

"""Reading audio: any rate, any number of channels, files, pieces of files and containers, in; mono float32, out."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from torch import Tensor

from components.data.faults import PLAUSIBLE_RATES
from components.data.stored import as_samples, sample_rate_of, stored_bytes, why_unreadable
from utils.errors import BadSample
from utils.imports import require

# A mean of channels with less than this share of their power is what is left of channels that cancel each other.
_CANCELLED = 0.01


def load_audio(
    path: str | Path,
    sample_rate: int,
    channel: int | None = None,
    *,
    offset: float = 0.0,
    duration: float | None = None,
    byte_offset: int | None = None,
    num_bytes: int | None = None,
    member: str | None = None,
) -> Tensor:
    """Decode a file, or a piece of one: what lies before `offset` is sought over, not decoded.

    Args:
        sample_rate: Hz wanted; the audio is resampled to it where its own differs.
        channel: which channel to take; None for the mean of all, or the loudest where the channels cancel each other.
        offset, duration: seconds; at most so much from there.
        byte_offset, num_bytes: where in `path`, a tar say, an audio file lies.
        member: a dataset of the HDF5 file `path`, of samples or of an audio file's bytes.

    Returns:
        `[1, T]` float32, nominally in [-1, 1].

    Raises:
        BadSample: it cannot be decoded, is empty, or holds NaN or infinite samples.
    """
    name = path if member is None else f"{path}:{member}"
    try:
        if member is not None:
            samples, file_rate = _read_member(path, member, offset, duration)
        elif byte_offset is not None:
            stored = stored_bytes(path, byte_offset, -1 if num_bytes is None else num_bytes)
            samples, file_rate = _read(io.BytesIO(stored), offset, duration)
        else:
            samples, file_rate = _read(path, offset, duration)
    except (soundfile.LibsndfileError, OSError) as error:
        raise _bad(name, *why_unreadable(path, error, byte_offset, num_bytes)) from None
    if file_rate not in PLAUSIBLE_RATES:
        raise _bad(name, "implausible rate", f"its header claims an implausible rate of {file_rate} Hz")
    if not len(samples):
        raise _bad(name, "no samples", "it holds no samples" + (f" behind {offset} s" if offset else ""))
    if channel is not None and channel >= samples.shape[1]:
        message = f"cannot take channel {channel} of {name}: it has {samples.shape[1]}"
        raise BadSample(message, source=str(name), reason="no such channel")
    mono = _mix_down(samples) if channel is None else samples[:, channel]
    if not np.isfinite(mono).all():
        raise _bad(name, "NaN or infinite samples", "it holds NaN or infinite samples")
    return torch.from_numpy(resample(mono, file_rate, sample_rate)).unsqueeze(0)


def tolerance(seconds: float) -> float:
    """By how many seconds audio may be shorter than the `seconds` that a manifest or a header promises.

    Manifests round, and decoders differ by a block: what is missing beyond this is a truncated file.
    """
    return max(0.1, 0.05 * seconds)


def resample(samples: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """Band-limited resampling of `[T]` float32; at least one sample comes out."""
    if from_rate == to_rate:
        return np.ascontiguousarray(samples)
    import soxr

    resampled = soxr.resample(samples, from_rate, to_rate, quality="HQ")
    return resampled if len(resampled) else np.ascontiguousarray(samples[:1])


def _read(file: str | Path | io.BytesIO, offset: float, duration: float | None) -> tuple[np.ndarray, int]:
    """`[T, C]` float32 and Hz; nothing is allocated by what a header claims."""
    with soundfile.SoundFile(file) as audio:
        rate = audio.samplerate
        if offset:
            audio.seek(min(round(offset * rate), audio.frames))
        num_samples = -1 if duration is None else min(round(duration * rate), audio.frames - audio.tell())
        return audio.read(num_samples, dtype="float32", always_2d=True), rate


def _read_member(path: str | Path, member: str, offset: float, duration: float | None) -> tuple[np.ndarray, int]:
    h5py = require("h5py", extra="data")
    with h5py.File(path, "r") as file:
        if member not in file:
            raise _bad(f"{path}:{member}", "no such member", f"{path} has no {member!r}")
        dataset = file[member]
        if dataset.dtype == np.uint8:  # the bytes of an audio file
            return _read(io.BytesIO(dataset[()].tobytes()), offset, duration)
        rate = sample_rate_of(file, dataset)
        if rate is None:
            raise _bad(f"{path}:{member}", "no sample_rate", "neither it nor its file has a 'sample_rate'")
        first = round(offset * rate)
        last = None if duration is None else first + round(duration * rate)
        return as_samples(dataset[..., first:last]).astype(np.float32), rate


def _mix_down(samples: np.ndarray) -> np.ndarray:
    if samples.shape[1] == 1:
        return samples[:, 0]
    mono = samples.mean(axis=1)
    powers = np.square(samples).mean(axis=0)
    if np.square(mono).mean() < _CANCELLED * powers.mean():
        return samples[:, int(powers.argmax())]
    return mono


def _bad(name: Any, reason: str, detail: str) -> BadSample:
    return BadSample(f"cannot read {name}: {detail}", source=str(name), reason=reason)

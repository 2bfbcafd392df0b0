"""Audio where it lies: ranges of a file's bytes, arrays of HDF5, and why a decoder refuses what is there.

Shapes: C channels, T samples.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

_HEAD_BYTES = 64
_CONVERT = "is not supported (convert it, e.g. with ffmpeg, to FLAC or WAV)"


def stored_bytes(path: str | Path, byte_offset: int, num_bytes: int) -> bytes:
    """A range of a file: the audio file that a tar holds there."""
    with open(path, "rb") as file:
        file.seek(byte_offset)
        return file.read(num_bytes)


def sample_rate_of(file: Any, dataset: Any) -> int | None:
    """Hz of a dataset of an open HDF5 file: its attribute, that of the file, or a scalar dataset for all; else None."""
    for attributes in (dataset.attrs, file.attrs):
        if "sample_rate" in attributes:
            return int(attributes["sample_rate"])
    # One scalar for the whole file, as UniFlow-Audio keeps it.
    return int(file["sample_rate"][()]) if "sample_rate" in file else None


def as_samples(values: np.ndarray) -> np.ndarray:
    """Floats in [-1, 1] or signed integers, `[T]` or `[C, T]`, as floats `[T, C]`."""
    if values.dtype.kind == "i":
        values = values / -float(np.iinfo(values.dtype).min)
    return np.atleast_2d(values).T


def why_unreadable(
    path: str | Path, error: Exception, byte_offset: int | None = None, num_bytes: int | None = None
) -> tuple[str, str]:
    """Why the audio in a file, or in a range of its bytes, could not be opened or decoded.

    Args:
        error: what libsndfile, h5py or the system said.

    Returns:
        A few words that come back for every file of the kind, for counting; and a sentence's end.
    """
    if not os.path.exists(path):
        return "no such file", "there is no such file"
    if os.path.isdir(path):
        return "no such file", "it is a folder"
    try:
        head = stored_bytes(path, byte_offset or 0, min(_HEAD_BYTES, num_bytes or _HEAD_BYTES))
    except OSError as unopened:
        return "unreadable file", str(unopened.strerror or unopened)
    return why_refused(head, str(getattr(error, "error_string", error)))


def why_refused(head: bytes, said: str) -> tuple[str, str]:
    """As `why_unreadable`, of what begins with `head`, some 64 bytes; `said` are the decoder's own words."""
    if not head:
        return "empty file", "it is empty"
    if head.startswith(b"version https://git-lfs"):
        return "Git LFS pointer", "it is a Git LFS pointer, not the audio (run `git lfs pull` in its repository)"
    if head[4:8] == b"ftyp":
        return "AAC", f"AAC/MP4 {_CONVERT}"
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return "WebM", f"WebM/Matroska {_CONVERT}"
    if head.startswith(b"\x30\x26\xb2\x75"):
        return "WMA", f"WMA/ASF {_CONVERT}"
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page", "it is a web page, most likely a failed download"
    if head.startswith((b"{", b"[")):
        return "JSON", "it is JSON, most likely a server's answer in place of the audio"
    if head.count(0) == len(head):
        return "only zero bytes", "it holds only zero bytes, as after a crash or a failed copy"
    if head[:4] == b"RIFF" and head[8:16] == b"WAVEfmt " and head[24:28] == bytes(4):
        return "implausible rate", "its header gives a sample rate of 0 Hz"
    return "unreadable audio", said.strip().rstrip(".")

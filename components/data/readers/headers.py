"""What the audio itself says about its length and its rate, without decoding it."""

from __future__ import annotations

import io
import os
from functools import lru_cache
from typing import NamedTuple

import soundfile

from components.data.faults import PLAUSIBLE_RATES, Fault
from components.data.manifest import Record
from components.data.stored import sample_rate_of, stored_bytes, why_unreadable
from utils.imports import require


class Header(NamedTuple):
    """Of a whole file or member: samples per channel, Hz, channels."""

    num_samples: int
    sample_rate: int
    num_channels: int


def complete(record: Record) -> bool:
    """Put in the `duration` and the `sample_rate` that `record` lacks; whether it lacked any.

    Raises:
        Fault: the audio cannot be opened, is empty, or ends before the record's `offset`.
    """
    if "duration" in record and "sample_rate" in record:
        return False
    header = header_of(record)
    record.setdefault("sample_rate", header.sample_rate)
    if "duration" not in record:
        left = header.num_samples / header.sample_rate - record.get("offset", 0)
        if left <= 0:
            raise Fault("offset past the end", f"'offset' is {record['offset']} s, past the end of {_name(record)}")
        record["duration"] = round(left, 6)
    return True


def header_of(record: Record) -> Header:
    """The header of the audio that `record` points into.

    Raises:
        Fault: the audio cannot be opened, or is empty.
    """
    path = record["audio_path"]
    header = _read(path, record.get("member"), record.get("byte_offset"), record.get("num_bytes"), _version(path))
    if isinstance(header, Fault):
        raise header
    if not header.num_samples:
        raise Fault("no samples", f"{_name(record)} holds no samples")
    if header.sample_rate not in PLAUSIBLE_RATES:
        raise Fault("implausible rate", f"{_name(record)} claims an implausible rate of {header.sample_rate} Hz")
    return header


def _name(record: Record) -> str:
    return f"{record['audio_path']}:{record['member']}" if "member" in record else record["audio_path"]


def _version(path: str) -> tuple[int, int] | None:
    """Changes with the file; None where there is none."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns


@lru_cache(maxsize=1024)  # segments of one recording come one after the other
def _read(
    path: str, member: str | None, byte_offset: int | None, num_bytes: int | None, version: tuple[int, int] | None
) -> Header | Fault:
    try:
        if member is not None:
            return _member_header(path, member)
        if byte_offset is not None:
            return _soundfile_header(io.BytesIO(stored_bytes(path, byte_offset, num_bytes)))
        return _soundfile_header(path)
    except Fault as fault:
        return fault
    except (soundfile.LibsndfileError, OSError) as error:
        reason, detail = why_unreadable(path, error, byte_offset, num_bytes)
        return Fault(reason, f"cannot read {path}: {detail}")


def _soundfile_header(file: str | io.BytesIO) -> Header:
    info = soundfile.info(file)
    return Header(info.frames, info.samplerate, info.channels)


def _member_header(path: str, member: str) -> Header:
    h5py = require("h5py", extra="data")
    with h5py.File(path) as file:
        if member not in file:
            raise Fault("no such member", f"{path} has no {member!r}")
        return dataset_header(file, file[member])


def dataset_header(file: object, dataset: object) -> Header:
    """The header of one dataset of an open HDF5 file; encoded audio (uint8 bytes) is looked into.

    Raises:
        Fault: it has no audio's shape, or nobody says its rate.
    """
    where = f"{file.filename}:{dataset.name}"
    if dataset.dtype == "uint8" and dataset.ndim == 1:
        try:
            return _soundfile_header(io.BytesIO(dataset[()].tobytes()))
        except soundfile.LibsndfileError as error:
            raise Fault("unreadable audio", f"cannot read {where}: {error.error_string.rstrip('.')}") from None
    if dataset.ndim not in (1, 2) or dataset.dtype.kind not in "fi":
        raise Fault("no audio", f"{where} is {dataset.dtype} of shape {dataset.shape}, not samples [T] or [C, T]")
    rate = sample_rate_of(file, dataset)
    if rate is None:
        raise Fault("no sample_rate", f"{where} has no attribute 'sample_rate', nor has its file")
    return Header(dataset.shape[-1], rate, 1 if dataset.ndim == 1 else dataset.shape[0])

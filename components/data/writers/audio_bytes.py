"""The audio of a record as the bytes of a file of its own."""

from __future__ import annotations

import io
from pathlib import PurePath
from typing import Any

import numpy as np
import soundfile

from components.data.faults import Fault
from components.data.manifest import Record
from components.data.readers.headers import header_of
from components.data.stored import as_samples, stored_bytes, why_unreadable
from utils.imports import require

# Kinds of samples that 16 bits hold without loss.
_SIXTEEN_BITS = {"PCM_16", "PCM_S8", "PCM_U8", "ULAW", "ALAW", "IMA_ADPCM", "MS_ADPCM", "GSM610"}
_SUFFIXES = {
    "WAV": ".wav",
    "WAVEX": ".wav",
    "FLAC": ".flac",
    "MPEG": ".mp3",
    "AIFF": ".aiff",
    "AU": ".au",
    "W64": ".w64",
}
# They say where the audio lies, or which part of a file it is; a file of its own needs none of them.
_PLACE = ("offset", "channel", "byte_offset", "num_bytes", "member")


def audio_bytes(record: Record) -> tuple[bytes, str, Record]:
    """The record's audio, its suffix, and the record without where it lay.

    A whole file is taken as it is, byte by byte. A segment or a channel is cut out and kept without loss: as FLAC with
    16 bits where these are enough, else with 24, or as float WAV where it goes beyond 1.

    Raises:
        Fault: the audio cannot be read.
    """
    rest = {key: value for key, value in record.items() if key not in _PLACE}
    if "offset" not in record and "channel" not in record:
        stored = _as_stored(record)
        if stored is not None:
            return stored, _suffix(stored, record["audio_path"]), rest
    samples, rate, subtype = _segment(record)
    encoded, suffix = _encode(samples, rate, subtype)
    return encoded, suffix, rest | {"sample_rate": rate}


def _as_stored(record: Record) -> bytes | None:
    header_of(record)  # what nobody can open is not copied
    if "byte_offset" in record:
        return stored_bytes(record["audio_path"], record["byte_offset"], record["num_bytes"])
    if "member" not in record:
        with open(record["audio_path"], "rb") as file:
            return file.read()
    stored = _member(record)
    return stored.tobytes() if stored.dtype == np.uint8 else None


def _segment(record: Record) -> tuple[np.ndarray, int, str]:
    """Samples `[T, C]`, Hz, and libsndfile's name of how they were kept."""
    header = header_of(record)
    rate = header.sample_rate
    start = round(record.get("offset", 0) * rate)
    num_samples = round(record["duration"] * rate) if "offset" in record else -1
    try:
        samples, subtype = _samples(record, start, num_samples)
    except (soundfile.LibsndfileError, OSError) as error:
        where = record["audio_path"], error, record.get("byte_offset"), record.get("num_bytes")
        reason, detail = why_unreadable(*where)
        raise Fault(reason, f"cannot read {record['audio_path']}: {detail}") from None
    if not len(samples):
        raise Fault("offset past the end", f"'offset' is {record['offset']} s, past the end of {record['audio_path']}")
    if "channel" in record:
        if record["channel"] >= samples.shape[1]:
            raise Fault(
                "no such channel", f"{record['audio_path']} has {samples.shape[1]} channels, no {record['channel']}"
            )
        samples = samples[:, record["channel"]][:, None]
    return samples, rate, subtype


def _samples(record: Record, start: int, num_samples: int) -> tuple[np.ndarray, str]:
    if "member" in record and (stored := _member(record)).dtype != np.uint8:
        samples = as_samples(stored)[start : None if num_samples < 0 else start + num_samples]
        kind = f"PCM_{8 * stored.dtype.itemsize}" if stored.dtype.kind == "i" else "FLOAT"
        return samples.astype(np.float64), kind
    source: Any = record["audio_path"]
    if "member" in record:
        source = io.BytesIO(stored.tobytes())
    elif "byte_offset" in record:
        source = io.BytesIO(stored_bytes(source, record["byte_offset"], record["num_bytes"]))
    with soundfile.SoundFile(source) as file:
        file.seek(min(start, file.frames))
        return file.read(num_samples, dtype="float64", always_2d=True), file.subtype


def _member(record: Record) -> np.ndarray:
    h5py = require("h5py", extra="data")
    with h5py.File(record["audio_path"]) as file:
        return file[record["member"]][()]


def _encode(samples: np.ndarray, rate: int, subtype: str) -> tuple[bytes, str]:
    kept, peak = io.BytesIO(), float(np.abs(samples).max())
    if subtype not in _SIXTEEN_BITS and not peak <= 1:
        soundfile.write(kept, samples, rate, format="WAV", subtype="FLOAT")
        return kept.getvalue(), ".wav"
    bits = "PCM_16" if subtype in _SIXTEEN_BITS else "PCM_24"
    soundfile.write(kept, samples, rate, format="FLAC", subtype=bits)
    return kept.getvalue(), ".flac"


def _suffix(stored: bytes, path: str) -> str:
    """By the content: a name may say something else."""
    info = soundfile.info(io.BytesIO(stored))
    if info.format == "OGG":
        return ".opus" if info.subtype == "OPUS" else ".ogg"
    return _SUFFIXES.get(info.format, PurePath(path).suffix.lower() or ".wav")

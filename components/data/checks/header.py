"""What a file says of itself before it is decoded."""

from __future__ import annotations

import struct
from typing import BinaryIO

# Programs that write to a pipe can't know the size: ffmpeg writes 2^32-1, sox and others about 2^31.
_PLACEHOLDER_BYTES = 2**31 - 2**16

_SUFFIXES = {
    "WAV": {".wav", ".wave"},
    "WAVEX": {".wav", ".wave"},
    "RF64": {".wav", ".rf64"},
    "NIST": {".wav", ".sph", ".nist"},  # the Linguistic Data Consortium names its SPHERE files .wav
    "FLAC": {".flac"},
    "OGG": {".ogg", ".oga", ".opus", ".spx"},
    "MPEG": {".mp3", ".mp2", ".mpga"},
    "MP3": {".mp3", ".mp2", ".mpga"},
    "AIFF": {".aiff", ".aif", ".aifc"},
    "AU": {".au", ".snd"},
    "W64": {".w64"},
    "CAF": {".caf"},
}
_AUDIO_SUFFIXES = set().union(*_SUFFIXES.values()) | {".m4a", ".aac", ".wma"}


def suffix_of_another(suffix: str, container: str) -> bool:
    """Whether a suffix such as ".wav" promises another format than `container`, as libsndfile calls it."""
    suffix = suffix.lower()
    return suffix in _AUDIO_SUFFIXES and suffix not in _SUFFIXES.get(container, {suffix})


def promised_bytes(file: BinaryIO, size: int) -> tuple[int, int, bool] | None:
    """What a WAV header says the samples take, and what there is: libsndfile shortens a truncated one without a word.

    Args:
        file: at its start.
        size: bytes of the file.

    Returns:
        (bytes promised, bytes there, whether the promise is a placeholder of a program that wrote to a pipe), or None
        where it is no WAV or has no data.
    """
    head = file.read(12)
    order = {b"RIFF": "<", b"RIFX": ">"}.get(head[:4])
    if order is None or head[8:12] != b"WAVE":
        return None
    position = 12
    while position + 8 <= size:
        file.seek(position)
        chunk = file.read(8)
        if len(chunk) < 8:
            return None
        name, length = chunk[:4], struct.unpack(f"{order}I", chunk[4:])[0]
        position += 8
        if name == b"data":
            return length, size - position, length >= _PLACEHOLDER_BYTES
        position += length + length % 2
    return None

"""One audio source decoded once: what the file is, and the measures of every segment of it that clips use."""

from __future__ import annotations

import io
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
import soundfile

from components.data.checks.header import promised_bytes
from components.data.checks.meter import Meter
from components.data.faults import PLAUSIBLE_RATES
from components.data.readers.headers import dataset_header
from components.data.stored import as_samples, stored_bytes, why_refused
from utils.imports import require

# Goes up when a measure changes its meaning: what is cached under another number is measured again.
SETTINGS = 1

_BLOCK_VALUES = 2**18


class Segment(NamedTuple):
    """A stretch of a source: `start` and `seconds` in s, None for the whole; `channel` None for all of them."""

    start: float | None = None
    seconds: float | None = None
    channel: int | None = None


class Source(NamedTuple):
    """Where encoded audio lies: a file, a range of its bytes, or a member of an HDF5 file.

    Attributes:
        path: the file.
        byte_offset, num_bytes: of an audio file inside of an uncompressed tar.
        member: the key inside of an HDF5 file.
        rate: Hz, for a member that is an array of samples.
    """

    path: str
    byte_offset: int | None = None
    num_bytes: int | None = None
    member: str | None = None
    rate: int | None = None


@dataclass
class Facts:
    """What is known of a source after decoding.

    Attributes:
        error: (code of the problem, what was seen) where it could not be decoded whole.
        container, encoding: libsndfile's names, such as FLAC and PCM_16.
        rate, channels: of the header.
        num_samples: decoded, a channel.
        claimed_samples: what the header says, a channel.
        placeholder: the claim is that of a program that wrote to a pipe, and no sign of a truncated file.
        said: the decoder's complaints, where it went on after them.
        segments: the measures of each segment asked for, in order; see `Meter.result`.
    """

    error: tuple[str, str] | None = None
    container: str = ""
    encoding: str = ""
    rate: int = 0
    channels: int = 0
    num_samples: int = 0
    claimed_samples: int = 0
    placeholder: bool = False
    said: str = ""
    segments: list[dict[str, Any]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON; `Facts(**it)` is the way back."""
        return asdict(self)


def measure(source: Source, segments: list[Segment]) -> Facts:
    """Decode `source` from end to end; whatever is wrong with it is in the result, never raised."""
    facts = Facts()
    with _overheard() as listen:
        try:
            _decode(source, segments, facts)
        except _Unusable as error:
            facts.error = (error.code, str(error))
        except Exception as error:  # a decoder's surprise is this file's problem, not the run's
            facts.error = ("unreadable", f"{type(error).__name__}: {error}")
        facts.said = listen()
    return facts


class _Unusable(Exception):
    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


def _decode(source: Source, segments: list[Segment], facts: Facts) -> None:
    with closing(_open(source, facts)) as sound:
        _measure(sound, segments, facts)


def _measure(sound: Any, segments: list[Segment], facts: Facts) -> None:
    facts.container, facts.encoding = sound.format, sound.subtype
    facts.rate, facts.channels = sound.samplerate, sound.channels
    if not facts.claimed_samples:
        facts.claimed_samples = sound.frames
    if facts.rate not in PLAUSIBLE_RATES:
        raise _Unusable("implausible_rate", f"{facts.rate} Hz")
    meters = [_SegmentMeter(segment, facts.rate, facts.channels) for segment in segments]
    waiting = sorted(meters, key=lambda meter: -meter.first)
    active: list[_SegmentMeter] = []
    for block in _blocks(sound, facts):
        while waiting and waiting[-1].first < facts.num_samples + len(block):
            active.append(waiting.pop())
        for meter in active:
            meter.update(block, facts.num_samples)
        facts.num_samples += len(block)
        active = [meter for meter in active if meter.last is None or meter.last > facts.num_samples]
    facts.segments = [meter.result() for meter in meters]


def _blocks(sound: Any, facts: Facts) -> Iterator[np.ndarray]:
    length = max(1, _BLOCK_VALUES // sound.channels)
    while True:
        try:
            block = sound.read(length, dtype="float32", always_2d=True)
        except (soundfile.LibsndfileError, OSError) as error:
            said = str(getattr(error, "error_string", error)).rstrip(".")
            good = f" (the first {facts.num_samples / facts.rate:.1f} s are good)" if facts.num_samples else ""
            raise _Unusable("decoder_failed", said + good) from None
        if len(block):
            yield block
        if len(block) < length:
            return


class _SegmentMeter:
    def __init__(self, segment: Segment, rate: int, channels: int) -> None:
        start = segment.start or 0.0
        whole = segment.start is None or segment.seconds is None
        self.first = max(0, round(start * rate))
        self.last = None if whole else max(self.first, round((start + segment.seconds) * rate))
        exists = segment.channel is not None and 0 <= segment.channel < channels
        self._channels = slice(segment.channel, segment.channel + 1) if exists else slice(None)
        self._meter = Meter(rate, 1 if exists else channels)

    def update(self, block: np.ndarray, position: int) -> None:
        last = len(block) if self.last is None else self.last - position
        part = block[max(0, self.first - position) : max(0, last), self._channels]
        if len(part):
            self._meter.update(part)

    def result(self) -> dict[str, Any]:
        return self._meter.result()


def _open(source: Source, facts: Facts) -> Any:
    try:
        status = os.stat(source.path)
    except FileNotFoundError:
        raise _Unusable("missing_file", "there is no such file") from None
    except (OSError, ValueError) as error:
        raise _Unusable("unreadable", getattr(error, "strerror", None) or str(error)) from None
    if not stat.S_ISREG(status.st_mode):
        raise _Unusable("not_a_file", "it is a folder" if stat.S_ISDIR(status.st_mode) else "it is a device or pipe")
    if source.member is not None:
        return _open_member(source)
    try:
        if source.num_bytes is not None:
            stored = stored_bytes(source.path, source.byte_offset, source.num_bytes)
            return _open_encoded(io.BytesIO(stored), len(stored), facts)
        with open(source.path, "rb") as file:
            return _open_encoded(file, status.st_size, facts, os.fsencode(source.path))
    except OSError as error:
        raise _Unusable("unreadable", error.strerror or str(error)) from None


def _open_encoded(file: Any, size: int, facts: Facts, path: bytes | None = None) -> soundfile.SoundFile:
    promise = promised_bytes(file, size)
    file.seek(0)
    head = file.read(64)
    file.seek(0)
    try:
        sound = soundfile.SoundFile(file if path is None else path)
    except soundfile.LibsndfileError as error:
        raise _Unusable("unreadable", why_refused(head, error.error_string)[1]) from None
    if promise and 0 < promise[1] < promise[0]:
        promised, there, facts.placeholder = promise
        facts.claimed_samples = round(sound.frames * promised / there)
    return sound


def _open_member(source: Source) -> Any:
    h5py = require("h5py", extra="data")
    with h5py.File(source.path, "r") as file:
        if source.member not in file:
            raise _Unusable("missing_file", f"the HDF5 file has no member {source.member!r}")
        dataset = file[source.member]
        rate = source.rate or dataset_header(file, dataset).sample_rate
        values = dataset[()]
    if isinstance(values, (bytes, np.void)) or values.dtype == np.uint8:
        encoded = values if isinstance(values, bytes) else values.tobytes()
        return _open_encoded(io.BytesIO(encoded), len(encoded), Facts())
    return _Array(values, rate)


class _Array:
    """Samples of an HDF5 dataset, `[T]` or `[C, T]`, read as a sound file is."""

    format = "HDF5"

    def __init__(self, values: np.ndarray, rate: int) -> None:
        self.subtype, self.samplerate = str(values.dtype), rate
        self._values = as_samples(values).astype(np.float32)
        self.frames, self.channels = self._values.shape
        self._position = 0

    def read(self, length: int, **_: Any) -> np.ndarray:
        self._position += length
        return self._values[self._position - length : self._position]

    def close(self) -> None:
        """Nothing is open."""


@contextmanager
def _overheard() -> Iterator[Any]:
    """What C libraries write to stderr, past Python, is kept from the screen and can be asked for."""
    sys.stderr.flush()
    screen = os.dup(2)
    with tempfile.TemporaryFile() as ear:
        os.dup2(ear.fileno(), 2)

        def listen() -> str:
            if not os.fstat(ear.fileno()).st_size:
                return ""
            ear.seek(0)
            return ear.read(2000).decode(errors="replace").strip().replace("\n", " / ")[:300]

        try:
            yield listen
        finally:
            os.dup2(screen, 2)
            os.close(screen)


def source_of(record: dict[str, Any]) -> Source:
    """Where the audio of a checked record lies."""
    member = record.get("member")
    rate = record.get("sample_rate") if member is not None else None
    return Source(record["audio_path"], record.get("byte_offset"), record.get("num_bytes"), member, rate)


def segment_of(record: dict[str, Any]) -> Segment:
    """Which stretch of its source a checked record uses; without an offset the whole."""
    offset = record.get("offset")
    return Segment(offset, None if offset is None else record.get("duration"), record.get("channel"))

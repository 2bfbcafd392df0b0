"""Manifests: JSON Lines, one clip a line.

    {"id": str, "audio_path": str, "duration": seconds, "sample_rate": Hz, "offset"?: seconds, "channel"?: int,
     "text"?: str, "caption"?: str, "labels"?: {target: class name}, "tags"?: [str], "speaker"?: str, ...}

A relative `audio_path` is relative to the manifest's folder. With an `offset` the clip is the `duration` seconds from
there on. Audio inside of a container: `audio_path` is the container, with `byte_offset` and `num_bytes` (an audio file
stored in a tar) or `member` (a key of an HDF5 file). Other keys are kept as they are.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from components.data.faults import Fault, check_record, parse_object
from utils.errors import UserError
from utils.io import replacing

Record = dict[str, Any]

AUDIO_SUFFIXES = {".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au", ".w64"}

_REQUIRED = ("id", "audio_path", "duration", "sample_rate")
_encode = json.JSONEncoder(ensure_ascii=False, separators=(", ", ": "), default=str).encode


def read_manifest(path: str | Path) -> list[Record]:
    """Read and check every line of a manifest of ours, as they are: `components.data.readers` reads any layout, lazily.

    Raises:
        UserError: the file is missing or holds no clip; a line is no JSON object, lacks a key, or repeats an id. The
            sentence names the file and the line.
    """
    path = Path(path)
    records, first_line = [], {}
    for number, line in numbered_lines(path):
        try:
            record = check_record(parse_object(line), required=_REQUIRED)
            if record["id"] in first_line:
                raise Fault("duplicate id", f"id {record['id']!r} was used in line {first_line[record['id']]} already")
        except Fault as fault:
            raise UserError(f"{path}:{number}: {fault.detail}") from None
        first_line[record["id"]] = number
        records.append(record)
    if not records:
        raise UserError(f"the manifest {path} holds no clip")
    return records


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(number from 1, line) of the lines of a text file, maybe gzipped, that are not blank, without a byte order mark.

    Raises:
        UserError: the file cannot be read, or is UTF-16.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if number == 1:
                    if line.startswith((b"\xff\xfe", b"\xfe\xff")):
                        raise UserError(f"cannot read the manifest {path}: it is UTF-16, not UTF-8 (save it as UTF-8)")
                    line = line.removeprefix(b"\xef\xbb\xbf")
                if not line.isspace():
                    yield number, line
    except EOFError:
        raise UserError(f"cannot read the manifest {path}: the compressed file is cut short") from None
    except OSError as error:
        raise UserError(f"cannot read the manifest {path}: {error.strerror or error}") from None


def write_manifest(path: str | Path, records: Iterable[Record]) -> None:
    """Write `records`, one by one, so that the file is either whole or not there; a name in `.gz` is compressed."""
    with manifest_writer(Path(path)) as write:
        for record in records:
            write(record)


@contextmanager
def manifest_writer(path: Path) -> Iterator[Callable[[Record], None]]:
    """A function that writes one record; the file appears, whole, when the block ends well."""
    with whole(path) as temporary, _open_for_writing(temporary, compressed=path.suffix == ".gz") as file:
        yield lambda record: file.write(to_json(record) + b"\n") and None


def to_json(record: Record) -> bytes:
    """One line of JSON, without the newline; what JSON does not know is written as text."""
    text = _encode(record)
    try:
        return text.encode()
    except UnicodeEncodeError:  # half a character, as a file name that is not UTF-8 has: JSON can say it by number
        return json.dumps(record, default=str).encode("ascii")


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """As `utils.io.replacing`, in a folder that is made if it is not there.

    Raises:
        UserError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            yield temporary
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


@contextmanager
def _open_for_writing(path: Path, compressed: bool) -> Iterator[IO[bytes]]:
    with path.open("wb") as file:
        if not compressed:
            yield file
            return
        # Without a time and a name inside, the same records make the same bytes.
        with gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed, io.BufferedWriter(packed) as buffered:
            yield buffered


def resolve_audio_path(record: Record, manifest: str | Path) -> Path:
    """Where the audio of `record` lies; absolute paths stand for themselves."""
    return Path(manifest).parent / record["audio_path"]


def audio_files(paths: str | Path | Sequence[str | Path]) -> list[Path]:
    """The audio files among `paths`, which are files and folders (searched deeply), in sorted order.

    Raises:
        UserError: a path does not exist, or there is no audio file.
    """
    roots = [Path(p) for p in ([paths] if isinstance(paths, (str, Path)) else paths)]
    files: list[Path] = []
    for root in roots:
        if root.is_dir():
            files += sorted(p for p in root.rglob("*") if p.suffix.lower() in AUDIO_SUFFIXES and p.is_file())
        elif root.is_file():
            files.append(root)
        else:
            raise UserError(f"{root} does not exist")
    if not files:
        raise UserError(f"no audio files in {', '.join(map(str, roots))}")
    return list(dict.fromkeys(files))

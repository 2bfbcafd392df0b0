"""Manifests: JSON Lines, one clip a line.

    {"id": str, "audio_path": str, "duration": seconds, "sample_rate": Hz,
     "text"?: str, "labels"?: {target: class name}, "speaker"?: str, "split"?: str, ...}

A relative `audio_path` is relative to the manifest's folder. Other keys are kept as they are.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.io import write_jsonl

Record = dict[str, Any]

_REQUIRED = {"id": str, "audio_path": str, "duration": (int, float), "sample_rate": int}
_AUDIO_SUFFIXES = {".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au", ".w64"}


def read_manifest(path: str | Path) -> list[Record]:
    """Read and check every line.

    Raises:
        UserError: the file is missing or holds no clip; a line is no JSON object, lacks a key, or repeats an id. The
            sentence names the file and the line.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(f"cannot read the manifest {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"cannot read the manifest {path}: it is not UTF-8 ({error.reason})") from None
    records, first_line = [], {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        record = _parse(line, f"{path}:{number}")
        if record["id"] in first_line:
            raise UserError(f"{path}:{number}: id {record['id']!r} was used in line {first_line[record['id']]} already")
        first_line[record["id"]] = number
        records.append(record)
    if not records:
        raise UserError(f"the manifest {path} holds no clip")
    return records


def _parse(line: str, where: str) -> Record:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not valid JSON ({error.msg} at column {error.colno})") from None
    if not isinstance(record, dict):
        raise UserError(f"{where}: expected a JSON object, found {type(record).__name__}")
    for key, kind in _REQUIRED.items():
        if key not in record:
            raise UserError(f"{where}: the key {key!r} is missing")
        if not isinstance(record[key], kind) or isinstance(record[key], bool):
            raise UserError(f"{where}: {key!r} has an unusable value, {record[key]!r}")
    for key in ("duration", "sample_rate"):
        if not (math.isfinite(record[key]) and record[key] > 0):
            raise UserError(f"{where}: {key!r} must be a positive number, not {record[key]!r}")
    if not isinstance(record.get("labels", {}), dict):
        raise UserError(f"{where}: 'labels' must map targets to class names, not {record['labels']!r}")
    return record


def write_manifest(path: str | Path, records: Iterable[Record]) -> None:
    """Write `records` so that the file is either whole or not there."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_jsonl(path, list(records))


def resolve_audio_path(record: Record, manifest: str | Path) -> Path:
    """Where the audio of `record` lies; absolute paths stand for themselves."""
    return Path(manifest).parent / record["audio_path"]


def scan_audio(paths: str | Path | Sequence[str | Path]) -> list[Record]:
    """One record per audio file among `paths`, which are files and folders (searched deeply), in sorted order.

    Raises:
        UserError: a path does not exist, a file cannot be read, or nothing was found.
    """
    import soundfile

    roots = [Path(p) for p in ([paths] if isinstance(paths, (str, Path)) else paths)]
    files: list[Path] = []
    for root in roots:
        if root.is_dir():
            files += sorted(p for p in root.rglob("*") if p.suffix.lower() in _AUDIO_SUFFIXES and p.is_file())
        elif root.is_file():
            files.append(root)
        else:
            raise UserError(f"{root} does not exist")
    if not files:
        raise UserError(f"no audio files in {', '.join(map(str, roots))}")
    records = []
    for file in dict.fromkeys(files):
        try:
            info = soundfile.info(file)
        except soundfile.LibsndfileError as error:
            raise UserError(f"cannot read {file}: {error.error_string}") from None
        records.append(
            {
                "id": str(file),
                "audio_path": str(file.absolute()),
                "duration": info.duration,
                "sample_rate": info.samplerate,
            }
        )
    return records

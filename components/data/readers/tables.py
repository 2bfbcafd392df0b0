"""Tables: CSV and TSV with a header, and the releases of Common Voice."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

from components.data.faults import Fault, parse_object
from components.data.manifest import AUDIO_SUFFIXES, Record
from components.data.readers.aliases import with_our_keys
from components.data.readers.jsonl import locate
from components.data.readers.layout import Layout, Row, absolute
from utils.errors import UserError

SUFFIXES = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
LABEL_PREFIX = "labels."

_NUMBERS = {
    "duration": float,
    "sample_rate": int,
    "offset": float,
    "channel": int,
    "byte_offset": int,
    "num_bytes": int,
}
_TEXTS = {"id", "audio_path", "text", "caption", "instruction", "speaker", "language", "task", "split", "member"}


def claims(path: Path) -> bool:
    """A file by its name."""
    return path.is_file() and path.name.lower().endswith(SUFFIXES)


def rows(path: Path, delimiter: str | None = None) -> Iterator[Row]:
    """One record a row, by the names in the header; empty cells are left out.

    Known numbers are read as numbers, a column `labels.<target>` as the label of that target, and JSON lists and
    objects as such; everything else stays text. Two columns without a header are a path and its text.

    Args:
        delimiter: what is between cells; None tells it from the file's name and its first line.
    """
    folder = absolute(path.parent, "")
    for where, found in _cells(path, delimiter or _delimiter(path), csv.QUOTE_MINIMAL):
        if isinstance(found, dict):
            try:
                found = with_our_keys(_typed(found), target_is_text=False)
                locate(found, folder)
            except Fault as fault:
                found = fault
        yield where, found


def claims_common_voice(path: Path) -> bool:
    """A TSV beside a folder `clips`, or the folder of both."""
    if path.is_dir():
        return (path / "clips").is_dir() and any(path.glob("*.tsv"))
    return claims(path) and ".tsv" in path.name.lower() and (path.parent / "clips").is_dir()


def common_voice_rows(path: Path) -> Iterator[Row]:
    """The clips of one split of a release, named by its TSV (`validated.tsv`, `train.tsv`, ...).

    Lengths come from `clip_durations.tsv` where the release has it. Other columns (`age`, `gender`, ...) are kept.
    """
    if path.is_dir():
        names = ", ".join(sorted(file.name for file in path.glob("*.tsv")))
        raise UserError(f"{path} is a Common Voice release of several splits: name one of its files ({names})")
    clips, seconds = absolute(path.parent, "clips"), _clip_durations(path.parent)
    for where, found in _cells(path, "\t", csv.QUOTE_NONE):  # its sentences have quotes that nobody closes
        if isinstance(found, dict):
            if not found.get("path"):
                yield where, Fault("no audio_path", "the key 'path' is missing")
                continue
            name = found["path"]
            record = with_our_keys(_typed({key: value for key, value in found.items() if key != "duration"}))
            record["id"] = PurePath(name).stem
            locate(record, clips)
            if name in seconds:
                record["duration"] = seconds[name]
            found = record
        yield where, found


def _clip_durations(folder: Path) -> dict[str, float]:
    path = folder / "clip_durations.tsv"
    if not path.is_file():
        return {}
    found = {}
    for _, cells in _cells(path, "\t", csv.QUOTE_NONE):
        with contextlib.suppress(ValueError, KeyError, TypeError):  # the header of the audio knows it too
            found[cells["clip"]] = float(cells["duration[ms]"]) / 1000
    return {name: value for name, value in found.items() if value > 0}


def _typed(cells: dict[str, str]) -> Record:
    record: dict[str, Any] = {}
    for key, text in cells.items():
        if text == "":
            continue
        if key.startswith(LABEL_PREFIX):
            record.setdefault("labels", {})[key.removeprefix(LABEL_PREFIX)] = text
        elif key in _NUMBERS:
            record[key] = _number(text, _NUMBERS[key])
        elif key not in _TEXTS and text[0] in "[{":
            record[key] = _json_or_text(text)
        else:
            record[key] = text
    return record


def _number(text: str, kind: type) -> Any:
    """What is no number stays text, and the check of records says so."""
    try:
        value = float(text)
        return int(value) if kind is int and value.is_integer() else value
    except ValueError:
        return text


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text) if text[0] == "[" else parse_object(text.encode())
    except (ValueError, Fault):
        return text


def _cells(path: Path, delimiter: str, quoting: int) -> Iterator[tuple[str, dict[str, str] | Fault]]:
    try:
        with _open(path) as file:
            table = csv.reader(file, delimiter=delimiter, quoting=quoting)
            header = None
            while True:
                try:
                    cells = next(table)
                except StopIteration:
                    return
                except csv.Error as error:
                    yield f"{path}:{table.line_num}", Fault("not a table", f"cannot be read as a table ({error})")
                    continue
                if not cells:
                    continue
                where = f"{path}:{table.line_num}"
                if header is None:
                    header, is_data = _header(cells, where)
                    if not is_data:
                        continue
                yield where, _row(header, cells)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except EOFError:
        raise UserError(f"cannot read {path}: the compressed file is cut short") from None


def _open(path: Path) -> io.TextIOBase:
    # What is not UTF-8 is kept: as a part of a path it is good, as a text the check of records refuses it.
    how = {"encoding": "utf-8-sig", "errors": "surrogateescape", "newline": ""}
    return gzip.open(path, "rt", **how) if path.name.lower().endswith(".gz") else path.open(**how)


def _header(cells: list[str], where: str) -> tuple[list[str], bool]:
    """The names of the columns, and whether `cells` is a row of data already."""
    if PurePath(cells[0].strip()).suffix.lower() in AUDIO_SUFFIXES:
        if len(cells) != 2:
            raise UserError(f"{where}: a table of {len(cells)} columns needs a header that names them")
        return ["audio", "text"], True
    names = [name.strip() for name in cells]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(f"{where}: the header names {', '.join(map(repr, sorted(twice)))} twice")
    return names, False


def _row(header: list[str], cells: list[str]) -> dict[str, str] | Fault:
    if len(cells) != len(header):
        return Fault("wrong number of cells", f"{len(cells)} cells where the header names {len(header)}")
    return dict(zip(header, cells))


def _delimiter(path: Path) -> str:
    if ".tsv" in path.name.lower():
        return "\t"
    try:
        with _open(path) as file:
            head = file.readline(1 << 16)
    except (OSError, EOFError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    counts = {delimiter: head.count(delimiter) for delimiter in ",;\t|"}
    return max(counts, key=counts.__getitem__)


LAYOUT = Layout("CSV or TSV with a header", claims, rows)
COMMON_VOICE = Layout("a TSV of a Common Voice release, with its folder clips", claims_common_voice, common_voice_rows)

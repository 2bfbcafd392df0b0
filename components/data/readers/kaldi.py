"""A Kaldi data folder, as ESPnet, WeNet and icefall write it too: `wav.scp`, `text`, `segments`, `utt2spk`."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path

from components.data.faults import Fault
from components.data.manifest import Record, numbered_lines
from components.data.readers.layout import Layout, RelativeTo, Row

logger = logging.getLogger(__name__)

_ARCHIVE = re.compile(r"\.ark:\d+$")


def claims(path: Path) -> bool:
    """A folder with a `wav.scp`, or that file."""
    return (path / "wav.scp").is_file() or (path.name == "wav.scp" and path.is_file())


def rows(path: Path) -> Iterator[Row]:
    """One record per utterance: of `segments` where there is such a file, else of `wav.scp`.

    A `speaker` that is the utterance's own name says that nobody knows the speaker. An utterance that `text` leaves out
    is a fault where there is a `text`.
    """
    folder = path if path.is_dir() else path.parent
    texts, speakers = _Table(folder / "text"), _Table(folder / "utt2spk")
    lengths, languages = _Table(folder / "utt2dur"), _Table(folder / "utt2lang")
    for where, name, found in _utterances(folder):
        if isinstance(found, Fault):
            yield where, found
            continue
        text = texts.get(name)
        if texts.exists and text is None:
            yield where, Fault("no line in text", f"utterance {name!r} has no line in {folder / 'text'}")
            continue
        speaker = speakers.get(name)
        record = {"id": name, **found, "text": text, "speaker": None if speaker == name else speaker}
        record["language"] = languages.get(name)
        if "duration" not in record and (seconds := lengths.get(name)) is not None:
            record["duration"] = _number(seconds)
        yield where, {key: value for key, value in record.items() if value is not None}
    if unused := texts.unused():
        logger.warning("%s: %d lines are of utterances that have no audio, and are left out", folder / "text", unused)


def _utterances(folder: Path) -> Iterator[tuple[str, str, Record | Fault]]:
    resolve = RelativeTo(folder)
    recordings = ((where, name, _recording(name, rest, resolve)) for where, name, rest in _lines(folder / "wav.scp"))
    if not (folder / "segments").is_file():
        yield from recordings
        return
    by_name = {name: found for _, name, found in recordings}
    for where, name, rest in _lines(folder / "segments"):
        yield where, name, _segment(name, rest.split(), by_name)


def _recording(name: str, rest: str, resolve: RelativeTo) -> Record | Fault:
    if rest.endswith("|"):
        return Fault(
            "a command", f"recording {name!r} is the output of a command, which is not run: decode it to a file"
        )
    if _ARCHIVE.search(rest):
        return Fault("a Kaldi archive", f"recording {name!r} lies in a Kaldi archive: write it as a WAV or FLAC file")
    if not rest:
        return Fault("no audio_path", f"recording {name!r} has no path")
    return {"audio_path": rest if "://" in rest else resolve(rest)}


def _segment(name: str, fields: list[str], recordings: dict[str, Record | Fault]) -> Record | Fault:
    if len(fields) < 3:
        return Fault("half a segment", f"segment {name!r} needs a recording, a start and an end")
    start, end = _number(fields[1]), _number(fields[2])
    if not isinstance(start, float) or not isinstance(end, float):
        return Fault("bad segment", f"segment {name!r} has a start {fields[1]!r} and an end {fields[2]!r}, in seconds")
    recording = recordings.get(fields[0])
    if recording is None:
        return Fault("no recording", f"segment {name!r} is of the recording {fields[0]!r}, which wav.scp lacks")
    if isinstance(recording, Fault):
        return recording
    # An end of -1 is that of the recording; a single channel may follow as a fifth field.
    span = {"offset": start} if end == -1 else {"offset": start, "duration": round(end - start, 6)}
    channel = {"channel": int(fields[3])} if len(fields) > 3 and fields[3].isdigit() else {}
    return recording | span | channel


def _number(text: str) -> float | str:
    """What is no number stays as it is, and the check of records says so."""
    try:
        return float(text)
    except ValueError:
        return text


def _lines(path: Path) -> Iterator[tuple[str, str, str]]:
    """(where, first field, the rest) of each line."""
    for number, line in numbered_lines(path):
        # What is not UTF-8 is kept: as a part of a path it is good, as a text the check of records refuses it.
        name, _, rest = line.decode(errors="surrogateescape").strip().replace("\t", " ", 1).partition(" ")
        yield f"{path}:{number}", name, rest.strip()


class _Table:
    """A file of one line per utterance: walked along where its order is that of the questions, else read as a whole."""

    def __init__(self, path: Path) -> None:
        self.exists = path.is_file()
        self._path, self._lines = path, _lines(path) if self.exists else iter(())
        self._table: dict[str, str] | None = None
        self._num_found = 0

    def get(self, name: str) -> str | None:
        if self._table is None:
            _, found, rest = next(self._lines, ("", "", ""))
            if found == name:
                self._num_found += 1
                return rest
            self._table = {found: rest for _, found, rest in _lines(self._path)} if self.exists else {}
        rest = self._table.get(name)
        self._num_found += rest is not None
        return rest

    def unused(self) -> int:
        """How many lines nobody asked for."""
        if self._table is None:
            return sum(1 for _ in self._lines)
        return len(self._table) - self._num_found


LAYOUT = Layout("a Kaldi folder: wav.scp, text, segments, utt2spk", claims, rows)

"""Every clip of every manifest of one examination, on disk: memory does not grow with the number of lines."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from components.data.checks.decode import Facts, Segment, Source, segment_of, source_of
from components.data.checks.problems import Problem
from components.data.checks.text import comparable
from components.data.manifest import Record, to_json

_SCHEMA = """
CREATE TABLE clips (n INTEGER PRIMARY KEY, split INTEGER, id TEXT, record BLOB, source TEXT, speaker TEXT,
                    language TEXT, text_key BLOB, chars INTEGER, classes BLOB);
CREATE TABLE sounds (n INTEGER PRIMARY KEY, seconds REAL, rate INTEGER, channels INTEGER, encoding TEXT, peak REAL,
                     level_db REAL, full_scale REAL, bandwidth REAL, hash TEXT);
CREATE TABLE problems (n INTEGER, code TEXT, detail TEXT);
CREATE TABLE bad_lines (split INTEGER, id TEXT, place TEXT, reason TEXT, detail TEXT);
"""


@dataclass
class Split:
    """A manifest in the survey.

    Attributes:
        number: its place among all.
        path: as it was given.
        name: short, and no other's.
        is_reference: only compared with, given by --against.
        num_clips, num_bad_lines: what could be read, and what could not.
        classes: (target, class) -> clips.
        keys: key of a record -> clips.
    """

    number: int
    path: str
    name: str
    is_reference: bool = False
    num_clips: int = 0
    num_bad_lines: int = 0
    classes: Counter[tuple[str, str]] = field(default_factory=Counter)
    keys: Counter[str] = field(default_factory=Counter)


class Survey:
    """The tables; `execute` asks them anything. Clips have numbers from 1, in the manifests' order."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        self.execute = database.execute
        self._num_clips = 0

    def add_clip(self, split: Split, record: Record) -> int:
        """Take in a record; its number comes back."""
        self._num_clips += 1
        text = record.get("text")
        has_text = isinstance(text, str) and bool(text.strip())
        row = (
            self._num_clips,
            split.number,
            _storable(record["id"]),
            to_json(record),
            json.dumps(source_of(record)),
            None if record.get("speaker") is None else _storable(str(record["speaker"])),
            _storable(str(record.get("language", ""))),
            _digest(comparable(text)) if has_text else None,
            len(text) if has_text else None,
            _digest(json.dumps(sorted(classes))) if (classes := classes_of(record)) else None,
        )
        self.execute("INSERT INTO clips VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        return self._num_clips

    def add_bad_line(self, split: Split, bad: dict[str, Any]) -> None:
        """Take in what the reader said of a line it could not use: `id`, `source`, `reason`, `detail`."""
        values = (bad.get("id"), bad.get("source"), bad.get("reason"), bad.get("detail"))
        row = (split.number, *(None if value is None else _storable(str(value)) for value in values))
        self.execute("INSERT INTO bad_lines VALUES (?, ?, ?, ?, ?)", row)

    def add_problems(self, number: int, problems: Iterable[Problem]) -> None:
        """Say what is wrong with a clip."""
        for problem in problems:
            self.execute("INSERT INTO problems VALUES (?, ?, ?)", (number, problem.code, _storable(problem.detail)))

    def add_sound(self, number: int, facts: Facts, measured: dict[str, Any]) -> None:
        """Say what was measured of a clip."""
        encoding = facts.container if facts.container == facts.encoding else f"{facts.container} {facts.encoding}"
        seconds = measured["num_samples"] / facts.rate
        audible = measured["num_samples"] and measured["level_db"] is not None
        row = (number, seconds, facts.rate, facts.channels, encoding, measured["peak"], measured["level_db"])
        row += (measured["full_scale"], measured["bandwidth"], measured["hash"] if audible else None)
        self.execute("INSERT INTO sounds VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)

    def index(self) -> None:
        """To be called when all clips are in, before they are looked for by source."""
        self.execute("CREATE INDEX clips_by_source ON clips (source)")

    def sources(self) -> Iterator[tuple[Source, list[tuple[int, Segment]]]]:
        """Every source once, with the clips that use it and which stretch each of them needs."""
        rows = self.execute("SELECT source, n FROM clips ORDER BY source, n")
        for source, group in groupby(rows, key=lambda row: row[0]):
            yield Source(*json.loads(source)), [(n, segment_of(self.record(n))) for _, n in group]

    def record(self, number: int) -> Record:
        """The record of a clip, as the reader gave it."""
        return json.loads(self.execute("SELECT record FROM clips WHERE n = ?", (number,)).fetchone()[0])

    def completed(self, number: int, record: Record) -> Record:
        """`record` with the decoded duration and sample rate where it has none."""
        if "duration" in record and "sample_rate" in record:
            return record
        found = self.execute("SELECT seconds, rate FROM sounds WHERE n = ?", (number,)).fetchone()
        return ({"duration": round(found[0], 6), "sample_rate": found[1]} if found else {}) | record

    @staticmethod
    def path_of(source: str) -> str:
        """The path of a source as the table has it, with its member where it is one."""
        found = Source(*json.loads(source))
        return _storable(found.path if found.member is None else f"{found.path}:{found.member}")

    def split_of(self, number: int) -> int:
        """The number of the split that a clip belongs to."""
        return self.execute("SELECT split FROM clips WHERE n = ?", (number,)).fetchone()[0]

    def column(self, statement: str, values: tuple = ()) -> np.ndarray:
        """The one column of a SELECT as float64 `[N]`."""
        return np.fromiter((row[0] for row in self.execute(statement, values)), dtype=np.float64)

    def clips_with_problems(self) -> Iterator[tuple[int, int, Record, list[Problem]]]:
        """(number, number of its split, record, what is wrong with it), clip by clip."""
        self.execute("CREATE INDEX IF NOT EXISTS problems_by_clip ON problems (n)")
        found = self.execute("SELECT n, code, detail FROM problems ORDER BY n, rowid")
        problem = found.fetchone()
        for number, split, record in self.execute("SELECT n, split, record FROM clips ORDER BY n"):
            problems = []
            while problem is not None and problem[0] == number:
                problems.append(Problem(*problem[1:]))
                problem = found.fetchone()
            yield number, split, json.loads(record), problems


def classes_of(record: Record) -> list[tuple[str, str]]:
    """(target, class) of every label a checked record has, in `labels`, `label` and `tags`."""
    classes = []
    for target, value in {**record.get("labels", {}), "label": record.get("label"), "tags": record.get("tags")}.items():
        values = value if isinstance(value, list) else [value]
        classes += [(str(target), str(name)) for name in values if name is not None]
    return classes


def _storable(text: str) -> str:
    """`text`; half a character, which SQLite does not take, is written as an escape."""
    return text.encode("utf-8", "backslashreplace").decode()


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).digest()


@contextmanager
def open_survey(folder: Path) -> Iterator[Survey]:
    """An empty survey in a file that has no name: it is gone with this process, however that ends."""
    path = folder / f".survey-{os.getpid()}.sqlite"
    path.unlink(missing_ok=True)
    database = sqlite3.connect(path, isolation_level=None)
    try:
        for pragma in ("journal_mode = OFF", "synchronous = OFF", "locking_mode = EXCLUSIVE", "temp_store = FILE"):
            database.execute(f"PRAGMA {pragma}")
        database.executescript(_SCHEMA)
        path.unlink()
        database.execute("BEGIN")
        yield Survey(database)
    finally:
        database.close()
        path.unlink(missing_ok=True)

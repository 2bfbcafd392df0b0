"""What was measured before, in one SQLite file: a second run decodes only what has changed."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from components.data.checks.decode import SETTINGS, Facts, Segment, Source
from utils.errors import UserError

_COMMIT_SECONDS = 2.0
_SCHEMA = """CREATE TABLE IF NOT EXISTS facts (
    source BLOB PRIMARY KEY, size INTEGER, modified_ns INTEGER, settings TEXT, facts TEXT) WITHOUT ROWID"""


class Cache:
    """Facts of sources by path, size, time of change, and what was asked of them.

    Whatever is killed, at most the last seconds' measures are lost: SQLite's journal takes care of the rest.
    """

    def __init__(self, path: Path, database: sqlite3.Connection) -> None:
        self._path, self._database = path, database
        self._last_commit = time.monotonic()

    def get(self, source: Source, segments: list[Segment]) -> Facts | None:
        """What is known, or None where it is nothing, or the file has changed."""
        row = self._execute("SELECT size, modified_ns, settings, facts FROM facts WHERE source = ?", (_key(source),))
        if row is None or row[:2] != version_of(source) or row[2] != _settings(segments):
            return None
        return Facts(**json.loads(row[3]))

    def put(self, source: Source, segments: list[Segment], version: tuple[int, int] | None, facts: Facts) -> None:
        """Remember `facts`; `version` is what `version_of` said before the file was decoded."""
        if version is None:  # no file: nothing to know it by
            return
        row = (_key(source), *version, _settings(segments), json.dumps(facts.as_dict()))
        self._execute("INSERT OR REPLACE INTO facts VALUES (?, ?, ?, ?, ?)", row)
        if time.monotonic() - self._last_commit > _COMMIT_SECONDS:
            self._database.commit()
            self._last_commit = time.monotonic()

    def _execute(self, statement: str, values: tuple) -> tuple | None:
        try:
            return self._database.execute(statement, values).fetchone()
        except sqlite3.DatabaseError as error:
            raise UserError(f"the cache {self._path} cannot be used ({error}): delete it and start again") from None


def version_of(source: Source) -> tuple[int, int] | None:
    """Size in bytes and time of change in ns of the file; None where there is none."""
    try:
        status = os.stat(source.path)
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns


def _key(source: Source) -> bytes:
    part = json.dumps(source[1:]) if any(value is not None for value in source[1:]) else ""
    return os.fsencode(os.path.abspath(source.path)) + b"\0" + part.encode()


def _settings(segments: list[Segment]) -> str:
    if segments == [Segment()]:
        return str(SETTINGS)
    return f"{SETTINGS} {hashlib.blake2b(json.dumps(segments).encode(), digest_size=12).hexdigest()}"


@contextmanager
def open_cache(path: Path) -> Iterator[Cache]:
    """The cache in a file, made where there is none; one that is damaged is begun anew.

    Raises:
        UserError: it cannot be written, or another process holds it for longer than a minute.
    """
    try:
        database = _connect(path)
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):
            raise UserError(f"cannot use the cache {path}: {error}") from None
        for name in (path, *(path.with_name(path.name + end) for end in ("-wal", "-shm"))):
            name.unlink(missing_ok=True)
        database = _connect(path)
    try:
        yield Cache(path, database)
    finally:
        database.commit()
        database.close()


def _connect(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=60)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = NORMAL")
    database.execute(_SCHEMA)
    database.commit()
    return database

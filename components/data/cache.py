"""Arrays kept on disk between passes and runs: decoded audio, features.

The store is one SQLite database in WAL mode: a writer killed at any moment leaves whole entries or none, any number of
workers and ranks of one machine read and write it at once, and nothing that is read back is code. An entry is the
array's bytes in NumPy's own format with a checksum beside them.
"""

from __future__ import annotations

import fcntl
import io
import logging
import os
import sqlite3
import threading
import time
import weakref
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from components.data.identity import content_key, settings_key
from utils.errors import UserError

__all__ = ["ArrayCache", "content_key", "settings_key"]

logger = logging.getLogger(__name__)

_PAGE_BYTES = 32_768  # between the 16 and 64 KiB that were fast with entries of 20 kB and of 300 kB
_LOG_BYTES = 16 * 2**20  # the write-ahead log is folded into the database when it is longer
_SLOT_BYTES = 8 * _PAGE_BYTES  # the most that an entry takes beside its array, where trees of pages grow
_MOST_BYTES = 900_000_000  # SQLite takes no value of more than 1e9
_MOST_NOTES = 256  # reads that are remembered before they are written down together
_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, used REAL NOT NULL);
CREATE INDEX IF NOT EXISTS entries_by_use ON entries (used);
CREATE TABLE IF NOT EXISTS arrays (id INTEGER PRIMARY KEY, checksum INTEGER NOT NULL, content BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS tallies (name TEXT PRIMARY KEY, number INTEGER NOT NULL) WITHOUT ROWID;
"""


class ArrayCache:
    """Arrays by key, made once and kept in a folder.

    Whoever needs an entry first makes it, so a first pass fills the cache, by however many workers and ranks. The
    cache never stops a run: where it can not be read or written (a full disk, say), that is said once and arrays are
    made anew.

    When it is full, what nobody has read since this object was made goes first, the longest unread before all. Entries
    of the present run are not thrown out for one another: an epoch asks for each once, and with an order by last use a
    corpus a little too large for its cache would find nothing there in any epoch. What has no room is made anew.

    The folder must be on a disk of this machine: SQLite's log is not for network file systems. Each machine of a
    cluster fills its own. An object can be pickled and forked; every process opens the database for itself.

    Args:
        folder: made if it is not there.
        max_bytes: of the database; its write-ahead log, some 16 MiB, comes on top while it is in use. A database that
            was made larger keeps its size on disk; delete the folder to have it back.

    Attributes:
        hits, misses, no_room: how often an array was there, was made, and was made but found no room; of this process.

    Raises:
        UserError: `max_bytes` is less than 1 MiB.
    """

    def __init__(self, folder: str | Path, max_bytes: int) -> None:
        if max_bytes < 2**20:
            raise UserError(f"a cache of {max_bytes} bytes holds nothing: max_bytes must be at least 1048576 (1 MiB)")
        self.folder, self.max_bytes = Path(folder).expanduser().absolute(), int(max_bytes)
        self._since = time.time()
        self._start()

    def _start(self) -> None:
        self.hits = self.misses = self.no_room = 0
        self._read_ids: list[int] = []  # of entries read for the first time in this run
        self._reads = self._writes = True
        self._too_large = min(self.max_bytes, _MOST_BYTES)  # what is as large has no room, as far as is known
        self._connection: sqlite3.Connection | None = None
        self._lock = threading.RLock()
        _open_caches.add(self)

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "max_bytes": self.max_bytes, "_since": self._since}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def get_or_make(self, key: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """The array under `key`; where there is none, or a damaged one, that of `make()`, which is then kept.

        The array is the caller's own: writable and contiguous, of the same values, shape and dtype either way.

        Args:
            key: of all that determines the array, as `f"{settings_key(frontend)} {content_key(path)}"`.

        Raises:
            UserError: `make` gives Python objects instead of numbers; or whatever `make` raises.
        """
        with self._lock:
            found, damaged = self._read(key)
            if found is not None:
                self.hits += 1
                return found
            self.misses += 1
        array = np.asarray(make(), order="C")
        if not array.flags.writeable:
            array = array.copy()
        if array.dtype.hasobject:
            raise UserError(f"a cache keeps numbers, not Python objects: {key!r} came as an array of {array.dtype}")
        with self._lock:
            self._write(key, array, damaged)
        return array

    def totals(self) -> dict[str, int]:
        """What is in the folder, `entries` and `bytes`, and what was ever `stored`, `damaged` and `evicted` there.

        Raises:
            UserError: the database can not be read.
        """
        with self._lock:
            try:
                connection = self._connect()
                tallies = dict(connection.execute("SELECT name, number FROM tallies"))
                (entries,) = connection.execute("SELECT count(*) FROM entries").fetchone()
                totals = {"entries": entries, "bytes": _used_bytes(connection)}
            except (sqlite3.Error, OSError) as error:
                raise UserError(f"the cache in {self.folder} can not be read: {error}") from None
            return totals | {name: tallies.get(name, 0) for name in ("stored", "damaged", "evicted")}

    def close(self) -> None:
        """Let go of the database; the next use opens it again."""
        with self._lock:
            if self._connection is not None:
                if self._read_ids:
                    self._guarded(self._note_reads)
                self._connection.close()
            self._connection = None

    # ------------------------------------------------------------------------------------------------------- internals

    def _read(self, key: str) -> tuple[np.ndarray | None, bool]:
        """The array, and whether one was there that is damaged."""
        if not self._reads:
            return None, False
        select = "SELECT id, used, checksum, content FROM entries JOIN arrays USING (id) WHERE key = ?"
        try:
            row = self._connect().execute(select, (key,)).fetchone()
        except (sqlite3.Error, OSError) as error:
            self._reads = self._writes = False
            self._complain("read", error)
            return None, False
        if row is None:
            return None, False
        number, used, checksum, content = row
        array = _decode(content, checksum)
        if array is not None and used < self._since:
            self._read_ids.append(number)
            if len(self._read_ids) >= _MOST_NOTES:
                self._guarded(self._note_reads)
        return array, array is None

    def _write(self, key: str, array: np.ndarray, damaged: bool) -> None:
        if not self._writes:
            return
        content = _encode(array)
        if len(content) >= self._too_large:
            self.no_room += 1
            return
        self._guarded(lambda: self._insert(key, content, damaged))

    def _guarded(self, step: Callable[[], None]) -> None:
        """Run `step` as one transaction; where that fails, nothing is written any more by this process."""
        if not self._writes:
            return
        try:
            connection = self._connect()
            connection.execute("BEGIN IMMEDIATE")
            try:
                step()
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
        except (sqlite3.Error, OSError) as error:
            self._writes = False
            self._complain("written", error)

    def _insert(self, key: str, content: bytes, damaged: bool) -> None:
        connection = self._connect()
        self._note_reads()
        if damaged:
            connection.execute("DELETE FROM arrays WHERE id = (SELECT id FROM entries WHERE key = ?)", (key,))
            connection.execute("DELETE FROM entries WHERE key = ?", (key,))
            self._count("damaged", 1)
        elif connection.execute("SELECT 1 FROM entries WHERE key = ?", (key,)).fetchone():
            return  # another process was faster
        if not self._make_room(len(content) + _SLOT_BYTES):
            self.no_room += 1
            self._too_large = len(content)
            return
        number = connection.execute("INSERT INTO entries (key, used) VALUES (?, ?)", (key, time.time())).lastrowid
        connection.execute("INSERT INTO arrays VALUES (?, ?, ?)", (number, zlib.crc32(content), content))
        self._count("stored", 1)

    def _make_room(self, num_bytes: int) -> bool:
        """Throw out what no run has read since this one began, until there is room."""
        connection = self._connect()
        while _used_bytes(connection) + num_bytes > self.max_bytes:
            oldest = "SELECT id FROM entries WHERE used < ? ORDER BY used LIMIT 8"
            numbers = [number for (number,) in connection.execute(oldest, (self._since,))]
            if not numbers:
                return False
            for table in ("arrays", "entries"):
                connection.executemany(f"DELETE FROM {table} WHERE id = ?", [(number,) for number in numbers])
            self._count("evicted", len(numbers))
        return True

    def _note_reads(self) -> None:
        now = time.time()
        update = "UPDATE entries SET used = ? WHERE id = ?"
        self._connect().executemany(update, [(now, number) for number in self._read_ids])
        self._read_ids.clear()

    def _count(self, name: str, number: int) -> None:
        upsert = "INSERT INTO tallies VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET number = number + excluded.number"
        self._connect().execute(upsert, (name, number))

    def _connect(self) -> sqlite3.Connection:
        if self._connection is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / "opening.lock").open("w") as lock:
                fcntl.lockf(lock, fcntl.LOCK_EX)  # SQLite does not wait when two make a database at once
                self._connection = _open(self.folder / "arrays.sqlite3")
        return self._connection

    def _complain(self, what: str, error: Exception) -> None:
        logger.warning(
            "the cache in %s can not be %s (%s): going on without; make room on the disk, or delete the folder if it "
            "is damaged",
            *(self.folder, what, error),
        )


# SQLite's locks belong to a process and its memory of them is copied by a fork: a child that inherits an open database
# believes in locks that it does not have. So all are closed before, and opened again when next asked for.
_open_caches: weakref.WeakSet[ArrayCache] = weakref.WeakSet()
_held: list[ArrayCache] = []


def _before_fork() -> None:
    for cache in list(_open_caches):
        cache._lock.acquire()
        _held.append(cache)
        cache.close()


def _after_fork_in_parent() -> None:
    while _held:
        _held.pop()._lock.release()


def _after_fork_in_child() -> None:
    _held.clear()
    for cache in list(_open_caches):
        cache._lock = threading.RLock()
        cache.hits = cache.misses = cache.no_room = 0


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)


def _open(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
    connection.execute(f"PRAGMA page_size = {_PAGE_BYTES}")  # of a database yet to be made
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")  # a power cut may lose the last entries, never the rest
    connection.execute(f"PRAGMA wal_autocheckpoint = {_LOG_BYTES // _PAGE_BYTES}")
    connection.execute(f"PRAGMA journal_size_limit = {_LOG_BYTES}")
    connection.executescript(_SCHEMA)
    return connection


def _used_bytes(connection: sqlite3.Connection) -> int:
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    (free,) = connection.execute("PRAGMA freelist_count").fetchone()
    return (pages - free) * _PAGE_BYTES


def _encode(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, allow_pickle=False)
    return file.getvalue()


def _decode(content: bytes, checksum: int) -> np.ndarray | None:
    """The array; None where the bytes are not those that were written."""
    if zlib.crc32(content) != checksum:
        return None
    try:
        return np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    except ValueError:
        return None

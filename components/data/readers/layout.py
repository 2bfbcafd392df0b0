"""What a layout of a collection is to the readers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from components.data.faults import Fault
from components.data.manifest import Record

# Where a record was found ("file:line"), and the record, or what is wrong with that place.
Row = tuple[str, Record | Fault]


@dataclass(frozen=True)
class Layout:
    """One way to keep a collection of audio.

    Attributes:
        words: what it is, for a person.
        claims: whether a file or folder is kept so, told from its name, its neighbours and its first line.
        rows: `(path, **options)` -> rows, one by one. A line that cannot be used is a row too, with its `Fault`; a
            `UserError` is for what cannot be read at all. `audio_path` is absolute.
    """

    words: str
    claims: Callable[[Path], bool]
    rows: Callable[..., Iterator[Row]]


def absolute(folder: Path | str, path: str) -> str:
    """`path` as `folder` sees it."""
    return os.path.join(os.path.abspath(folder), path)


class RelativeTo:
    """Paths of tools that start from the working folder: seen from the collection's folder, unless only that fits."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._decided = os.path.abspath(folder), False

    def __call__(self, path: str) -> str:
        if not self._decided and not os.path.isabs(path):
            self._decided = True
            if not os.path.exists(os.path.join(self._folder, path)) and os.path.exists(path):
                self._folder = os.getcwd()
        return os.path.join(self._folder, path)

"""Manifests and tables: the audio stays where it is."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from components.data.manifest import Record, manifest_writer, whole
from components.data.readers.tables import LABEL_PREFIX


@contextmanager
def jsonl_writer(target: Path) -> Iterator[Callable[[Record], None]]:
    """A manifest of ours; a name in `.gz` is compressed."""
    folder = os.path.abspath(target.parent)
    with manifest_writer(target) as write:
        yield lambda record: write(portable(record, folder))


def portable(record: Record, folder: str) -> Record:
    """`record`; audio below `folder` is named from there, so that both can be moved together."""
    path = record["audio_path"]
    if os.path.isabs(path) and (inside := os.path.normpath(path)).startswith(os.path.join(folder, "")):
        return record | {"audio_path": os.path.relpath(inside, folder)}
    return record


@contextmanager
def csv_writer(target: Path) -> Iterator[Callable[[Record], None]]:
    """A table whose columns are all keys that any record has; `.tsv` is separated by tabs.

    A label is a column `labels.<target>`, a list or an object a cell of JSON. Read back, a number under a key that is
    not ours is text: a table knows no types.
    """
    folder = os.path.abspath(target.parent)
    columns: dict[str, None] = {}
    with whole(target) as temporary:
        rows = temporary.with_name(f"{temporary.name}.rows")
        try:
            with rows.open("w", encoding="utf-8") as spool:

                def write(record: Record) -> None:
                    cells = _cells(portable(record, folder))
                    columns.update(dict.fromkeys(cells))
                    spool.write(json.dumps(cells) + "\n")

                yield write
            _write_table(temporary, rows, list(columns), "\t" if target.suffix == ".tsv" else ",")
        finally:
            rows.unlink(missing_ok=True)


def _write_table(path: Path, rows: Path, columns: list[str], delimiter: str) -> None:
    with rows.open(encoding="utf-8") as spool, path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, columns, restval="", delimiter=delimiter, lineterminator="\n")
        table.writeheader()
        for line in spool:
            table.writerow(json.loads(line))


def _cells(record: Record) -> dict[str, Any]:
    cells = {key: _cell(value) for key, value in record.items() if key != "labels"}
    return cells | {LABEL_PREFIX + target: _cell(name) for target, name in record.get("labels", {}).items()}


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict, bool)) else value

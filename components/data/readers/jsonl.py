"""JSON Lines: manifests of ours, of NeMo and of FunASR."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from components.data.faults import Fault, near_miss, parse_object
from components.data.manifest import Record, numbered_lines
from components.data.readers.aliases import with_our_keys
from components.data.readers.layout import Layout, Row, absolute

logger = logging.getLogger(__name__)

SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".ndjson")


def claims(path: Path) -> bool:
    """A file by its name."""
    return path.is_file() and path.name.lower().endswith(SUFFIXES)


def rows(path: Path) -> Iterator[Row]:
    """One record a line; a relative `audio_path` is relative to the file's folder."""
    folder, warned = absolute(path.parent, ""), set()
    for where, found in objects(path):
        if isinstance(found, dict):
            try:
                found = with_our_keys(found)
                locate(found, folder)
            except Fault as fault:
                yield where, fault
                continue
            for key in found.keys() - warned:
                warned.add(key)
                if meant := near_miss(key):
                    logger.warning("%s: did you mean %r by %r? It is kept as it is", where, meant, key)
        yield where, found


def objects(path: Path) -> Iterator[Row]:
    """The JSON object of each line, as it is."""
    first = True
    for number, line in numbered_lines(path):
        where = f"{path}:{number}"
        try:
            yield where, parse_object(line)
        except Fault as fault:
            if first and path.name.lower().removesuffix(".gz").endswith(".json") and line.lstrip()[:1] in b"[{":
                fault.detail += "; one JSON object a line is read, not one document over all"
            yield where, fault
        first = False


def locate(record: Record, folder: str) -> None:
    """Make a relative `audio_path` absolute, where it is a path at all: the check of records finds what is not."""
    path = record.get("audio_path")
    if isinstance(path, str) and path.strip() and "://" not in path:
        record["audio_path"] = absolute(folder, path)


LAYOUT = Layout("JSON Lines: ours, NeMo's or FunASR's keys", claims, rows)

"""Any collection of audio as records.

A layout is one file here and one line in `FORMATS`; the first that claims a source reads it.
"""

from __future__ import annotations

import glob
import inspect
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from components.data.faults import Fault, check_record
from components.data.manifest import Record
from components.data.readers import content_audio, hdf5, jsonl, kaldi, lhotse_cuts, tables, tar_shards, trees
from components.data.readers.headers import complete
from components.data.readers.layout import Layout, Row
from components.data.records import Records
from utils.errors import UserError
from utils.names import did_you_mean

__all__ = ["FORMATS", "iterate_records", "read_records"]

logger = logging.getLogger(__name__)

FORMATS: dict[str, Layout] = {
    "lhotse": lhotse_cuts.LAYOUT,
    "jsonl": jsonl.LAYOUT,
    "common_voice": tables.COMMON_VOICE,
    "csv": tables.LAYOUT,
    "content_audio": content_audio.LAYOUT,
    "kaldi": kaldi.LAYOUT,
    "shar": lhotse_cuts.SHAR,
    "tar": tar_shards.LAYOUT,
    "hdf5": hdf5.LAYOUT,
    "librispeech": trees.LIBRISPEECH,
    "folder": trees.FOLDER,
}

Source = str | Path | Mapping[str, str | Path] | Sequence[str | Path]
BadRow = dict[str, str | None]


def read_records(
    source: Source,
    format: str | None = None,
    on_bad: Callable[[BadRow], None] | None = None,
    fill: bool = True,
    **options: Any,
) -> Records:
    """All records of a collection, checked, in little memory.

    Args:
        source: a file, a folder, a glob (`shards/*.tar`), a list of these, or the two files `{"content": ..., "audio":
            ...}`.
        format: one of `FORMATS`; None tells it from the source.
        on_bad: None stops at the first line that cannot be used. Else it is given `{"id", "source": "file:line",
            "reason", "detail"}` of each, and the line is left out.
        fill: take a missing `duration` or `sample_rate` from the audio's header. Without, it stays missing.
        options: of the layout, as the arguments of its `rows` say (`target` of a folder, `supervisions` of Lhotse).

    Raises:
        UserError: the source is missing, of no known layout, or holds no clip that can be used; or, without `on_bad`,
            a line is bad. The sentence names file and line.
    """
    return Records.from_iterable(iterate_records(source, format, on_bad, fill, **options))


def iterate_records(
    source: Source,
    format: str | None = None,
    on_bad: Callable[[BadRow], None] | None = None,
    fill: bool = True,
    **options: Any,
) -> Iterator[Record]:
    """The records of a collection, one by one; arguments and errors as of `read_records`."""
    if format is not None and format not in FORMATS:
        raise UserError(f"there is no format {format!r}{did_you_mean(format, FORMATS)}: {', '.join(FORMATS)}")
    return _checked(source, format, on_bad, fill, options)


def _checked(
    source: Source, format: str | None, on_bad: Callable[[BadRow], None] | None, fill: bool, options: dict[str, Any]
) -> Iterator[Record]:
    seen: set[int] = set()  # hashes: ids of millions would be most of the memory
    num_good, num_filled, reasons = 0, 0, Counter()
    for where, found in _rows(source, format, options):
        try:
            record = _good(found)
            num_filled += complete(record) if fill else 0
            if (key := hash(record["id"])) in seen:
                raise Fault("duplicate id", f"id {record['id']!r} was used already")
        except Fault as fault:
            reasons[fault.reason] += 1
            _tell(where, found, fault, source, format, options, on_bad)
            continue
        seen.add(key)
        num_good += 1
        yield record
    if num_filled:
        what = "durations or sample rates came from the headers of the audio (convert writes them down, once)"
        logger.info("%s: %d of %d %s", _name(source), num_filled, num_good, what)
    if reasons:
        told = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common(5))
        logger.warning("%s: %d of %d left out (%s)", _name(source), reasons.total(), num_good + reasons.total(), told)
    if not num_good:
        raise UserError(f"{_name(source)} holds no clip" + (" that can be used" if reasons else ""))


def _good(found: Record | Fault) -> Record:
    if isinstance(found, Fault):
        raise found
    return check_record(found)


def _tell(
    where: str,
    found: Record | Fault,
    fault: Fault,
    source: Source,
    format: str | None,
    options: dict[str, Any],
    on_bad: Callable[[BadRow], None] | None,
) -> None:
    identifier = found.get("id") if isinstance(found, dict) else None
    if on_bad is not None:
        name = identifier if isinstance(identifier, str) else None
        on_bad({"id": name, "source": where, "reason": fault.reason, "detail": fault.detail})
        return
    first = ""
    if fault.reason == "duplicate id" and isinstance(found, dict):
        again = _rows(source, format, options)
        first = next(
            (f" in {place}" for place, row in again if isinstance(row, dict) and row.get("id") == identifier), ""
        )
    raise UserError(f"{where}: {fault.detail}{first}")


def _rows(source: Source, format: str | None, options: dict[str, Any]) -> Iterator[Row]:
    if isinstance(source, Mapping):
        yield from _with_options("content_audio", options)(source, **options)
        return
    for path in _paths(source):
        name = format or _detect(path)
        yield from _with_options(name, options)(path, **options)


def _with_options(name: str, options: dict[str, Any]) -> Callable[..., Iterator[Row]]:
    rows = FORMATS[name].rows
    known = list(inspect.signature(rows).parameters)[1:]
    for option in options:
        if option not in known:
            offered = f"it has {', '.join(known)}" if known else "it has none"
            raise UserError(f"the format {name} has no option {option!r}{did_you_mean(option, known)}: {offered}")
    return rows


def _paths(source: str | Path | Sequence[str | Path]) -> Iterator[Path]:
    for one in [source] if isinstance(source, (str, Path)) else source:
        path = Path(one).expanduser()
        if path.exists():
            yield path
            continue
        matches = sorted(glob.glob(str(path), recursive=True)) if glob.has_magic(str(path)) else []
        if not matches:
            raise UserError(f"{one} matches nothing" if glob.has_magic(str(path)) else f"{one} does not exist")
        yield from map(Path, matches)


def _detect(path: Path) -> str:
    for name, layout in FORMATS.items():
        if layout.claims(path):
            return name
    known = "; ".join(f"{name}: {layout.words}" for name, layout in FORMATS.items())
    raise UserError(f"{path} is of no layout that is known ({known})")


def _name(source: Source) -> str:
    if isinstance(source, Mapping):
        return ", ".join(map(str, source.values()))
    if isinstance(source, (str, Path)):
        return str(source)
    return ", ".join(map(str, source[:3])) + (", ..." if len(source) > 3 else "")

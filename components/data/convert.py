"""Any collection that can be read, to a manifest of ours or to another layout: `python -m components.data convert`."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from components.data.faults import Fault
from components.data.manifest import manifest_writer
from components.data.readers import FORMATS, iterate_records
from components.data.splits import Split
from components.data.writers import SUFFIXES, WRITERS
from utils.errors import UserError
from utils.logging import set_up_logging
from utils.names import did_you_mean

ALL = "all"  # what is not split
_LAYOUTS = {".jsonl": "jsonl", ".csv": "csv", ".tsv": "csv", ".tar": "tar", ".h5": "hdf5", ".hdf5": "hdf5"}


@dataclass
class Outcome:
    """How many records went where, their seconds, and why others were left out."""

    records: Counter[str] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)


def convert(
    source: Any,
    target: str | Path,
    to: str | None = None,
    format: str | None = None,
    split: Split | None = None,
    shard_size: int | None = None,
    on_bad: Callable[[dict[str, Any]], None] | None = None,
    fill: bool = True,
    options: Mapping[str, Any] | None = None,
) -> Outcome:
    """Read `source` and write `target`, record by record; what is written appears whole, at the end.

    Args:
        source, format, on_bad, fill, options: see `components.data.readers.read_records`.
        target: a file; with `split` a folder of `train`, `val` and `test`.
        to: one of `WRITERS`; None tells it from the suffix of `target`, and is a manifest of ours with `split`.
        split: deals the records out.
        shard_size: clips in a tar; None for one tar of all.

    Raises:
        UserError: the source cannot be read, the target cannot be written or be told, nothing is left for a split, or,
            without `on_bad`, a record is bad.
    """
    target = Path(target).expanduser()
    to = to or ("jsonl" if split else layout_of(target))
    if to not in WRITERS:
        raise UserError(f"nothing writes the layout {to!r}{did_you_mean(to, WRITERS)}: {', '.join(WRITERS)}")
    if shard_size is not None and to != "tar":
        raise UserError(f"--shard-size is of tar shards, not of {to}")
    paths = {name: target / f"{name}{SUFFIXES[to]}" for name in split.names} if split else {ALL: target}
    sharding = {} if shard_size is None else {"shard_size": shard_size}
    outcome = Outcome()

    def tell(bad: dict[str, Any]) -> None:
        outcome.reasons[bad["reason"]] += 1
        on_bad(bad)

    with ExitStack() as stack:
        writers = {name: stack.enter_context(WRITERS[to](path, **sharding)) for name, path in paths.items()}
        for record in iterate_records(source, format, None if on_bad is None else tell, fill, **(options or {})):
            name = split.of(record) if split else ALL
            try:
                writers[name](record)
            except Fault as fault:
                if on_bad is None:
                    raise UserError(f"{source}: {record['id']}: {fault.detail}") from None
                place = f"{source}: {record['id']}"
                tell({"id": record["id"], "source": place, "reason": fault.reason, "detail": fault.detail})
                continue
            outcome.records[name] += 1
            outcome.seconds[name] += record.get("duration", 0.0)
        if empty := [name for name in paths if not outcome.records[name]]:
            remedy = "other shares, or another --seed" if split else "every record was left out"
            raise UserError(f"{target}: nothing is left for {' and '.join(empty)} ({remedy})")
    return outcome


def layout_of(target: Path) -> str:
    """The layout that the suffix of a target stands for.

    Raises:
        UserError: it stands for none.
    """
    name = target.name.lower().removesuffix(".gz")
    for suffix, layout in _LAYOUTS.items():
        if name.endswith(suffix):
            return layout
    raise UserError(f"{target}: its suffix tells no layout: give --to ({', '.join(WRITERS)})")


def main(arguments: list[str]) -> int:
    """The command; 0 when the target is written."""
    parsed = _parser().parse_args(arguments)
    set_up_logging()
    split = None
    if parsed.val or parsed.test:
        split = Split(parsed.val, parsed.test, parsed.split_by, parsed.seed)
    source = parsed.source[0] if len(parsed.source) == 1 else parsed.source
    settings = (parsed.to, parsed.from_format, split, parsed.shard_size)
    with ExitStack() as stack:
        on_bad = stack.enter_context(manifest_writer(parsed.bad)) if parsed.bad else None
        outcome = convert(source, parsed.target, *settings, on_bad, not parsed.no_fill, _options(parsed.option))
    for name, count in outcome.records.items():
        print(f"{name:5} {count} clips, {outcome.seconds[name] / 3600:.2f} h")
    if left_out := outcome.reasons.total():
        told = ", ".join(f"{count} {reason}" for reason, count in outcome.reasons.most_common())
        print(f"left out {left_out} ({told}), named in {parsed.bad}")
    target = parsed.target
    print(f"in    {target.with_stem(f'{target.stem}-*') if parsed.shard_size else target}")
    return 0


def _options(pairs: list[str]) -> dict[str, str]:
    if wrong := [pair for pair in pairs if "=" not in pair]:
        raise UserError(f"--option {wrong[0]}: give NAME=VALUE")
    return dict(pair.split("=", 1) for pair in pairs)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m components.data convert", description=__doc__)
    parser.add_argument("source", nargs="+", help="files, folders or globs")
    parser.add_argument("target", type=Path, help="a file; with --val or --test a folder of train, val and test")
    parser.add_argument(
        "--from", dest="from_format", choices=FORMATS, help="layout of the source; told by itself without"
    )
    parser.add_argument("--to", choices=WRITERS, help="layout of the target; told by its suffix without")
    parser.add_argument("--val", type=float, default=0.0, metavar="SHARE", help="share dealt to val, e.g. 0.1")
    parser.add_argument("--test", type=float, default=0.0, metavar="SHARE", help="share dealt to test")
    parser.add_argument("--split-by", default="id", metavar="KEY", help="what must not be in two splits, e.g. speaker")
    parser.add_argument("--seed", type=int, default=0, help="another one deals anew")
    parser.add_argument("--shard-size", type=int, metavar="N", help="clips in a tar: NAME-000000.tar, ...")
    parser.add_argument("--bad", type=Path, metavar="FILE", help="leave out what cannot be used, and name it there")
    parser.add_argument("--no-fill", action="store_true", help="open no audio for a missing duration or sample rate")
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="of the source's layout")
    return parser

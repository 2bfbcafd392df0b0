"""The files in which predictions of a set lie, and what of an earlier attempt is still good.

Beside the records `<name>.jsonl` lie `<name>.summary.json`, `<name>.bad.jsonl`, and, while a set is worked on, the
folder `<name>.parts` with what each process has done so far. An *item* is what a dataset has under one index; it has a
key, and as many records as the predictor makes of it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.io import write_json, write_jsonl

Record = dict[str, Any]

_ABSENT = object()


@dataclass(frozen=True)
class Done:
    """What was made of one item: its records, and `{"id", "source", "reason", "detail"}` of what could not be used."""

    key: str
    records: list[Record]
    bad: list[Record]


@dataclass(frozen=True)
class Output:
    """Where the results of a set go.

    Attributes:
        records: the file of records, a JSON object a line.
    """

    records: Path

    @property
    def summary(self) -> Path:
        """What was made, by what, and how fast."""
        return self.records.with_suffix(".summary.json")

    @property
    def scores(self) -> Path:
        """What an evaluation found."""
        return self.records.with_suffix(".scores.json")

    @property
    def bad(self) -> Path:
        """What could not be used, and why."""
        return self.records.with_suffix(".bad.jsonl")

    @property
    def parts(self) -> Path:
        """What is done so far, while a set is worked on."""
        return self.records.with_suffix(".parts")

    def last_summary(self) -> dict[str, Any]:
        """That of an earlier run; empty where there is none that can be read."""
        return _read_json(self.summary)


# --------------------------------------------------------------------------------------------------------- earlier work


def take_up(
    output: Output, settings: Mapping[str, Any], problem_of: Callable[[Record], str | None], overwrite: bool
) -> str | None:
    """Keep what an earlier attempt left and is still good, for `kept_keys`; the rest will be made again.

    Args:
        settings: what the records depend on; those of other settings are not kept.
        problem_of: why a record can not be kept although it is there; None where it can.
        overwrite: keep nothing.

    Returns:
        a sentence about what is not kept; None where there is nothing to say.
    """
    told, kept = None, {}
    before = _read_json(output.parts / "settings.json") or output.last_summary().get("settings", {})
    if before and not overwrite:
        if changes := what_differs(before, settings):
            told = f"made again, as settings differ: {changes}"
        else:
            found = {done.key: done for done in (*_in_records(output.records), *_in_parts(output.parts))}
            kept = {key: done for key, done in found.items() if done.records and not done.bad}
            problems = {key: next(filter(None, map(problem_of, done.records)), None) for key, done in kept.items()}
            kept = {key: done for key, done in kept.items() if problems[key] is None}
            if broken := [problem for problem in problems.values() if problem is not None]:
                told = f"{len(broken)} of {len(problems)} earlier results are made again, the first: {broken[0]}"
    if not kept:  # what described other results would describe these no longer
        for path in (output.records, output.summary, output.scores, output.bad):
            path.unlink(missing_ok=True)
    fresh = output.parts.with_name(f".{output.parts.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    write_json(fresh / "settings.json", dict(settings))
    write_jsonl(fresh / "kept.jsonl", [_line(done) for done in kept.values()])
    shutil.rmtree(output.parts, ignore_errors=True)
    fresh.replace(output.parts)
    return told


def kept_keys(output: Output) -> set[str]:
    """The items that `take_up` kept."""
    return {done.key for done in _read_part(output.parts / "kept.jsonl")}


class Part:
    """The file of one process: a line an item, on the disk as soon as its batch is done."""

    def __init__(self, output: Output, rank: int) -> None:
        self._file = (output.parts / f"rank_{rank:05d}.jsonl").open("a", encoding="utf-8")

    def write(self, items: Sequence[Done]) -> None:
        """Add what was made of a batch."""
        self._file.write("".join(_text(_line(done)) for done in items))
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def merge(output: Output, keys: Sequence[str]) -> tuple[list[Record], list[Record]]:
    """The records of all parts and what was bad, in the order of `keys`; the file of records is written.

    Raises:
        UserError: an item is missing.
    """
    found = {done.key: done for done in _in_parts(output.parts)}
    if missing := [key for key in keys if key not in found]:
        raise UserError(
            f"{output.records}: {len(missing)} of {len(keys)} items are missing, {missing[0]!r} first; "
            "the same command again makes them"
        )
    records = [record for key in keys for record in found[key].records]
    bad = [told for key in keys for told in found[key].bad]
    write_jsonl(output.records, records)
    return records, bad


def finish(output: Output, bad: Sequence[Record], summary: Mapping[str, Any]) -> None:
    """Write what else is to be known of a set, and remove its parts."""
    if bad:
        write_jsonl(output.bad, list(bad))
    else:
        output.bad.unlink(missing_ok=True)
    write_json(output.summary, dict(summary))
    shutil.rmtree(output.parts, ignore_errors=True)


def _line(done: Done) -> dict[str, Any]:
    return {"item": done.key, "records": done.records} | ({"bad": done.bad} if done.bad else {})


def _text(line: Mapping[str, Any]) -> str:
    return json.dumps(line, ensure_ascii=False, default=str) + "\n"


def _in_parts(folder: Path) -> Iterator[Done]:
    for path in sorted(folder.glob("*.jsonl")):
        yield from _read_part(path)


def _read_part(path: Path) -> Iterator[Done]:
    for line in _read_lines(path):
        yield Done(line["item"], line["records"], line.get("bad", []))


def _in_records(path: Path) -> Iterator[Done]:
    """The items of a merged file: a record says of which item it is where its id does not."""
    items: dict[str, list[Record]] = {}
    for record in _read_lines(path):
        items.setdefault(record.get("item", record["id"]), []).append(record)
    for key, records in items.items():
        yield Done(key, records, [])


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Objects, a line each; the last line may have been cut by a kill."""
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)
    except (FileNotFoundError, ValueError):
        return


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


# ------------------------------------------------------------------------------------------------------------- settings


def digest(content: Any) -> str:
    """Twelve hexadecimal digits of what JSON makes of `content`."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:12]


def what_differs(before: Mapping[str, Any], now: Mapping[str, Any], num_named: int = 3) -> str:
    """ "predictor.seed was 0, is 1; ..."; empty where nothing does. `now` is compared as JSON would write it."""
    old, new = _flat(before), _flat(json.loads(json.dumps(now, default=str)))
    changed = [key for key in {**new, **old} if old.get(key, _ABSENT) != new.get(key, _ABSENT)]
    named = [f"{key} was {_told(old, key)}, is {_told(new, key)}" for key in changed[:num_named]]
    return "; ".join(named) + (f"; and {len(changed) - num_named} more" if len(changed) > num_named else "")


def _flat(content: Any, path: str = "") -> dict[str, Any]:
    if isinstance(content, Mapping) and content:
        parts = [_flat(value, f"{path}.{key}" if path else str(key)) for key, value in content.items()]
        return {key: value for part in parts for key, value in part.items()}
    return {path: content} if path else {}


def _told(values: Mapping[str, Any], key: str) -> str:
    if key not in values:
        return "not set"
    text = str(values[key])
    return text if len(text) <= 40 else f"{text[:37]}..."


# -------------------------------------------------------------------------------------------------------------- telling


def told_results(made: Any) -> str:
    """A few lines on a `trainer.prediction.MadeSet`: what there is and where, how fast it was, what was left out."""
    summary, name, output = made.summary, made.name, made.output
    scores = "  ".join(f"{metric} {value:.4g}" for metric, value in summary["scores"].items())
    kept = f" ({summary['num_kept']} kept)" if summary["num_kept"] else ""
    lines = [f"{name}: {made.redone}"] if made.redone else []
    lines.append(f"{name}: {summary['num_records']} predictions{kept}  {scores}  -> {output.records}")
    if summary["performance"] and summary["num_kept"] < summary["num_items"]:
        lines.append(f"{name}: {_told_speed(summary['performance'])}")
    if made.bad:
        first = made.bad[0]["detail"]
        lines.append(f"{name}: {len(made.bad)} bad samples left out, the first: {first}  -> {output.bad}")
    return "\n".join(lines)


def _told_speed(speed: Mapping[str, Any]) -> str:
    parts = [f"{speed['items_per_second']:.3g} items/s"]
    if speed["rtf"]:
        rtf, split = speed["rtf"], speed["rtf"].get("phases", {})
        phases = ", ".join(f"{phase} {value:.3g}" for phase, value in split.items())
        told = f"p50 {rtf['p50']:.3g}, p95 {rtf['p95']:.3g}" + (f"; {phases}" if phases else "")
        parts.append(f"real-time factor {rtf['total']:.3g} ({told})")
    memory = speed["peak_memory_bytes"]
    parts.append(" ".join(f"{where} {size / 2**30:.2f} GiB" for where, size in memory.items() if size))
    processes = f"{speed['num_processes']} x " if speed["num_processes"] > 1 else ""
    threads = f", {speed['num_threads']} threads" if speed["device"] == "cpu" else ""
    size = f", batches of {speed['batch_size']}" if speed["batch_size"] else ""
    return "  ".join(parts) + f"  {processes}{speed['device']}{threads}{size}"

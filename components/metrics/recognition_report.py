"""What a recogniser got wrong: rates and how sure they are, for whom, which words for which, and every utterance."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from pathlib import Path
from typing import Any

from components.metrics.error_rates import (
    RATE_NAMES,
    UNITS,
    Edit,
    ErrorCounts,
    PairedComparison,
    align,
    collapse_warning,
    compare,
    item_counts,
    rate_interval,
    units_of,
)
from components.metrics.intervals import Interval, wilson_interval
from utils.errors import UserError
from utils.io import write_json, write_jsonl, write_text

Record = Mapping[str, Any]

DURATION_EDGES = (1.0, 2.0, 3.0, 5.0, 10.0, 15.0, 20.0, 30.0)  # seconds
_NUM_SHOWN = 20
_MANY = 10  # utterances, of which it is strange that all have one transcription
_MOST_SLICES = 12  # a number with more values than this is sliced at its quartiles
_MARKS = {"equal": "", "substitute": "S", "delete": "D", "insert": "I"}


@dataclass(frozen=True)
class Slice:
    """The utterances that have one value in common.

    Attributes:
        field, value: of the records.
        counts: over its utterances.
        interval: of its rate, None for fewer than two utterances.
    """

    field: str
    value: str
    counts: ErrorCounts
    interval: Interval | None


class RecognitionReport:
    """The errors of a recogniser over utterances, whatever processes they were recognised in.

    Args:
        records: `{"id", "reference": text, "hypothesis": text, "duration"?: seconds, "speaker"?, ...}`; also lists of
            tokens with `unit="token"`. The same utterance twice, as when ranks share the last batch, counts once.
        unit: what is aligned: "word", "char" or "token".
        normalize: done to references and hypotheses alike; None compares them as they are.
        slices: fields of the records to report apart; `duration` in bins, other numbers of many values at their
            quartiles, and `labels` by each of its targets, `labels.accent`.
        groups: the field whose values are drawn together for intervals, `speaker`; None draws utterances.
        num_draws, seed: of bootstrap intervals.

    Raises:
        UserError: there is no record, one lacks a text, or an utterance comes twice with two hypotheses.
    """

    def __init__(
        self,
        records: Iterable[Record],
        unit: str = "word",
        normalize: Callable[[str], str] | None = None,
        slices: Sequence[str] = ("speaker", "duration"),
        groups: str | None = None,
        num_draws: int = 1000,
        seed: int = 0,
    ) -> None:
        if unit not in UNITS:
            raise UserError(f"unit: {unit!r} is none of {', '.join(UNITS)}")
        self.unit, self.normalize, self.num_draws, self.seed = unit, normalize, num_draws, seed
        self.records = _once_each(records)
        self.pairs = [(self._units(record, "reference"), self._units(record, "hypothesis")) for record in self.records]
        self.items = [item_counts(reference, hypothesis) for reference, hypothesis in self.pairs]
        self.groups = groups
        self.slice_fields = [
            field for field in slices if any(_value(record, field) is not None for record in self.records)
        ]

    def _units(self, record: Record, key: str) -> list[Hashable]:
        text = record.get(key)
        if text is None:
            raise UserError(f"{record.get('id')!r} has no {key!r}")
        if self.normalize is not None:
            text = self.normalize(text if isinstance(text, str) else " ".join(map(str, text)))
        return units_of(text, self.unit)

    @cached_property
    def counts(self) -> ErrorCounts:
        """Over all utterances."""
        return sum(self.items, ErrorCounts())

    @cached_property
    def interval(self) -> Interval | None:
        """Of the rate, 95 %."""
        return self._interval(range(len(self.items)))

    def _interval(self, indices: Sequence[int]) -> Interval | None:
        groups = None if self.groups is None else [str(_value(self.records[i], self.groups)) for i in indices]
        return rate_interval([self.items[i] for i in indices], groups, self.num_draws, self.seed)

    @property
    def rate_name(self) -> str:
        """`wer`, `cer`, or `per` for tokens."""
        return RATE_NAMES[self.unit]

    def alignment(self, index: int) -> list[Edit]:
        """Of one utterance."""
        return align(*self.pairs[index])

    @cached_property
    def confusions(self) -> dict[str, Counter[tuple[str, str]]]:
        """By kind (substitute, delete, insert), how often which (reference, hypothesis); "" where a side has none."""
        found: dict[str, Counter[tuple[str, str]]] = {"substitute": Counter(), "delete": Counter(), "insert": Counter()}
        for index, item in enumerate(self.items):
            for kind, wanted, said in self.alignment(index) if item.errors else ():
                if kind != "equal":
                    found[kind]["" if wanted is None else str(wanted), "" if said is None else str(said)] += 1
        return found

    @cached_property
    def slices(self) -> list[Slice]:
        """Of every field, in the order of its values."""
        found = []
        for field in self.slice_fields:
            name_of = _naming(field, [_value(record, field) for record in self.records])
            members: dict[tuple[Any, str], list[int]] = {}
            for index, record in enumerate(self.records):
                members.setdefault(name_of(_value(record, field)), []).append(index)
            for (_, name), indices in sorted(members.items(), key=lambda entry: entry[0]):
                counts = sum((self.items[i] for i in indices), ErrorCounts())
                found.append(Slice(field, name, counts, self._interval(indices)))
        return found

    def against(self, other: RecognitionReport) -> PairedComparison:
        """This run against another one on the same utterances; below 0 this one is better.

        Raises:
            UserError: they are not of the same utterances.
        """
        index_of = {str(record["id"]): i for i, record in enumerate(other.records)}
        ids = [str(record["id"]) for record in self.records]
        if set(ids) != set(index_of):
            lone = sorted(set(ids) ^ set(index_of))
            raise UserError(f"the two are not of the same utterances: only one has {lone[0]!r} ({len(lone)} such)")
        groups = None if self.groups is None else [str(_value(record, self.groups)) for record in self.records]
        theirs = [other.items[index_of[one]] for one in ids]
        return compare(self.items, theirs, groups, self.num_draws, self.seed)

    # -------------------------------------------------------------------------------------------------------- output

    def summary(self) -> dict[str, Any]:
        """All but the single utterances, for JSON."""
        item_interval = wilson_interval(self.counts.num_wrong, self.counts.num_items)
        as_dict = getattr(self.normalize, "as_dict", None)
        return {
            self.rate_name: _finite(self.counts.rate),
            "interval": self.interval and [_finite(end) for end in self.interval],
            "ser": self.counts.item_rate,
            "ser_interval": item_interval and list(item_interval),
            "unit": self.unit,
            **dataclasses.asdict(self.counts),
            "normalize": as_dict() if as_dict else self.normalize and getattr(self.normalize, "__name__", "custom"),
            "intervals_over": self.groups or "utterances",
            "warning": self.warning,
            "slices": [
                {
                    "field": one.field,
                    "value": one.value,
                    self.rate_name: _finite(one.counts.rate),
                    "interval": one.interval and [_finite(end) for end in one.interval],
                    **dataclasses.asdict(one.counts),
                }
                for one in self.slices
            ],
        }

    @cached_property
    def warning(self) -> str | None:
        """What `collapse_warning` says of this."""
        if not self.counts.num_reference:
            return None
        said = Counter(tuple(hypothesis) for _, hypothesis in self.pairs)
        share = max(said.values()) / len(self.pairs) if len(self.pairs) >= _MANY else None
        return collapse_warning(self.counts.length_ratio, most_frequent_share=share)

    def utterances(self) -> list[dict[str, Any]]:
        """For each utterance its record, its counts, its rate, and its alignment as `[mark, reference, hypothesis]`."""
        rows = []
        for index, (record, item) in enumerate(zip(self.records, self.items)):
            steps = [[_MARKS[kind], wanted, said] for kind, wanted, said in self.alignment(index)]
            rows.append(
                {
                    **record,
                    "errors": item.errors,
                    "substitutions": item.substitutions,
                    "deletions": item.deletions,
                    "insertions": item.insertions,
                    "num_reference": item.num_reference,
                    self.rate_name: _finite(item.rate),
                    "alignment": steps,
                }
            )
        return rows

    def write(self, folder: str | Path) -> None:
        """Write `summary.json`, `utterances.jsonl`, `confusions.jsonl` and, for people, `report.txt`.

        Raises:
            UserError: they can not be written.
        """
        folder = Path(folder).expanduser()
        confusions = [
            {"kind": kind, "reference": wanted, "hypothesis": said, "count": count}
            for kind, pairs in self.confusions.items()
            for (wanted, said), count in sorted(pairs.items(), key=lambda entry: (-entry[1], entry[0]))
        ]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / "summary.json", self.summary())
            write_jsonl(folder / "utterances.jsonl", self.utterances())
            write_jsonl(folder / "confusions.jsonl", confusions)
            write_text(folder / "report.txt", f"{self}\n\n{self._worst()}\n")
        except OSError as error:
            raise UserError(f"cannot write into {folder}: {error.strerror or error}") from None

    def __str__(self) -> str:
        lines = [self.headline]
        if self.warning:
            lines.append(f"warning: {self.warning}")
        if self.slices:
            lines += ["", *_table([_row(self.rate_name.upper(), one) for one in self.slices])]
        for kind, title in (("substitute", "taken for"), ("delete", "left out"), ("insert", "put in")):
            common = self.confusions[kind].most_common(_NUM_SHOWN // 2)
            if common:
                told = ", ".join(f"{' > '.join(filter(None, pair))} {count}x" for pair, count in common)
                lines += ["" if kind == "substitute" else None, f"{title}: {told}"]
        return "\n".join(line for line in lines if line is not None)

    @property
    def headline(self) -> str:
        """One line: the rate, its interval, what it is made of."""
        c = self.counts
        return (
            f"{self.rate_name.upper()} {_percent(c.rate)}{_interval_text(self.interval)} | "
            f"{c.substitutions} substituted, {c.deletions} deleted, {c.insertions} inserted of {c.num_reference} "
            f"| SER {_percent(c.item_rate)} of {c.num_items}"
        )

    def _worst(self) -> str:
        """The utterances with most errors, one above the other."""
        order = sorted(range(len(self.items)), key=lambda i: (-self.items[i].errors, str(self.records[i]["id"])))
        shown = [i for i in order[:_NUM_SHOWN] if self.items[i].errors]
        return "\n\n".join(f"{self.records[i]['id']}\n{_two_lines(self.alignment(i), self.unit)}" for i in shown)


def _once_each(records: Iterable[Record]) -> list[Record]:
    kept: dict[str, Record] = {}
    for record in records:
        if "id" not in record:
            raise UserError(f"a record has no 'id': {dict(list(record.items())[:3])}")
        before = kept.setdefault(str(record["id"]), record)
        if any(before.get(key) != record.get(key) for key in ("reference", "hypothesis")):
            raise UserError(f"{record['id']!r} comes twice, with two texts")
    if not kept:
        raise UserError("there is no utterance to score")
    return list(kept.values())


def _value(record: Record, field: str) -> Any:
    """Of a field, or of one inside of it: `labels.accent`."""
    value: Any = record.get(field)
    if value is None and "." in field:
        outer, _, inner = field.partition(".")
        nested = record.get(outer)
        value = nested.get(inner) if isinstance(nested, Mapping) else None
    return value


def _naming(field: str, values: Sequence[Any]) -> Callable[[Any], tuple[Any, str]]:
    """Value -> (what it is sorted by, what its slice is called)."""
    numbers = sorted(float(v) for v in values if isinstance(v, Real) and not isinstance(v, bool))
    known = sum(value is not None for value in values)
    if field != "duration" and (len(numbers) < known or len(set(numbers)) <= _MOST_SLICES):
        return lambda value: (_order(value), "(none)" if value is None else str(value))
    if field == "duration":
        edges = list(DURATION_EDGES)
    else:
        edges = sorted({numbers[round(share * (len(numbers) - 1))] for share in (0.25, 0.5, 0.75)})

    def name_of(value: Any) -> tuple[Any, str]:
        if not isinstance(value, Real):
            return _order(None), "(none)"
        above = sum(float(value) >= edge for edge in edges)
        ends = [f"{end:g}" for end in edges]
        name = (
            f"< {ends[0]}"
            if not above
            else f">= {ends[-1]}"
            if above == len(ends)
            else f"{ends[above - 1]} .. {ends[above]}"
        )
        return _order(above), name

    return name_of


def _order(value: Any) -> tuple[bool, bool, float, str]:
    """Numbers by size, names by the alphabet, nothing last."""
    is_number = isinstance(value, Real)
    return value is None, not is_number, float(value) if is_number else 0.0, str(value)


def _row(name: str, one: Slice) -> tuple[str, ...]:
    counts = one.counts
    return (
        one.field,
        one.value,
        f"{name} {_percent(counts.rate)}{_interval_text(one.interval)}",
        f"{counts.num_items} utterances",
        f"S {counts.substitutions} D {counts.deletions} I {counts.insertions} of {counts.num_reference}",
    )


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]


def _two_lines(steps: Sequence[Edit], unit: str) -> str:
    """Reference above hypothesis, wrong units marked below."""
    gap = "" if unit == "char" else " "
    columns = []
    for kind, wanted, said in steps:
        cells = ["*" if unit is None else str(unit) for unit in (wanted, said)] + [_MARKS[kind]]
        width = max(map(len, cells))
        columns.append([cell.ljust(width) for cell in cells])
    return "\n".join(
        f"{name} {gap.join(column[row] for column in columns)}".rstrip()
        for row, name in enumerate(("ref", "hyp", "   "))
    )


def _percent(rate: float) -> str:
    return f"{100 * rate:.2f} %" if math.isfinite(rate) else "-"


def _interval_text(interval: Interval | None) -> str:
    return "" if interval is None else f" ({100 * interval.low:.2f} .. {100 * interval.high:.2f})"


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None

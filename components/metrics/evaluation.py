"""Metrics over whole collections: audio is read clip by clip, each clip once."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from components.data.audio import load_audio
from components.data.manifest import Record
from components.data.readers import read_records
from components.metrics.base import Metric, MetricResult
from components.metrics.clips import Clip
from utils.errors import BadSample, UserError

_CHUNK = 32  # clips in memory at once


@dataclass(frozen=True)
class Collection:
    """Records of clips that are read when they are wanted.

    Attributes:
        name: what its clips are counted under.
        records: as `components.data.readers` gives them.
        left_out: {reason: number} of lines and files that can not be used; grows while clips are read.
    """

    name: str
    records: Sequence[Record]
    left_out: Counter[str] = field(default_factory=Counter)

    @classmethod
    def read(cls, name: str, source: str | Path, max_clips: int | None = None) -> Collection:
        """A folder, a manifest, or any layout that can be read.

        Args:
            max_clips: at most so many, from all over it: a manifest is often sorted.

        Raises:
            UserError: it is missing or holds no clip that can be used.
        """
        left_out: Counter[str] = Counter()
        records = read_records(source, on_bad=lambda row: left_out.update([str(row["reason"])]))
        if max_clips is not None and max_clips < len(records):
            records = records.select([i * len(records) // max_clips for i in range(max_clips)])
        return cls(name, records, left_out)

    def clips(self, indices: Sequence[int], sample_rate: int) -> list[Clip | None]:
        """The clips at `indices`, at `sample_rate` Hz; None for one that can not be read, which is counted."""
        return [self.read_clip(self.records[i], sample_rate) for i in indices]

    def read_clip(self, record: Record, sample_rate: int) -> Clip | None:
        """One clip; None where it can not be read, which is counted."""
        place = {key: record.get(key) for key in ("channel", "byte_offset", "num_bytes", "member")}
        piece = {"offset": record["offset"], "duration": record["duration"]} if record.get("offset") else {}
        try:
            samples = load_audio(record["audio_path"], sample_rate, **place, **piece)[0].numpy()
        except BadSample as error:
            self.left_out[error.reason] += 1
            return None
        return Clip(record["id"], samples, sample_rate, text_of(record), labels_of(record))


def text_of(record: Record) -> str | None:
    """What is said, else what was asked for: `text`, `caption`, `instruction`."""
    return next((record[key] for key in ("text", "caption", "instruction") if record.get(key)), None)


def labels_of(record: Record) -> dict[str, str]:
    """`labels`, and `speaker`, `language`, `task`, `label` where these are keys of their own."""
    own = {key: str(record[key]) for key in ("speaker", "language", "task", "label") if record.get(key) is not None}
    return own | {str(target): str(name) for target, name in (record.get("labels") or {}).items()}


def paired_references(generated: Sequence[Record], reference: Sequence[Record] | None, folder: Path) -> list[Any]:
    """For each generated record its reference: an index into `reference`, a record of its own, or None.

    The key `reference_path` of a generated record wins, looked up among the references by its path; a relative one is
    relative to `folder`. Else ids are compared, and where there are several samples of one content (`seven_1`), the
    key `reference_id`.
    """
    by_id = {record["id"]: i for i, record in enumerate(reference or ())}
    by_path = {str(record["audio_path"]): i for i, record in enumerate(reference or ()) if not record.get("offset")}
    found: list[Any] = []
    for record in generated:
        if record.get("reference_path"):
            path = str((folder / record["reference_path"]).absolute())
            kept = {key: record[key] for key in ("text", "caption", "labels", "speaker") if key in record}
            found.append(by_path.get(path, {"id": f"{record['id']} (reference)", "audio_path": path} | kept))
        else:
            found.append(by_id.get(record.get("reference_id") or record["id"]))
    return found


def evaluate(
    metrics: Mapping[str, Metric],
    generated: Collection,
    reference: Collection | None = None,
    training: Collection | None = None,
    pairs: Sequence[Any] | None = None,
    sample_rate: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, MetricResult]:
    """All metrics over collections; those that lack what they need have a result without a value that says so.

    Args:
        metrics: by name; they are given clips in chunks, paired ones the pairs.
        generated, reference, training: the sets.
        pairs: as `paired_references` gives them; by id where None.
        sample_rate: Hz that everything is compared at; that of the first generated clip where None.
        progress: is told how many clips of how many are done.

    Raises:
        UserError: a metric's configuration does not fit the clips.
    """
    if pairs is None:
        pairs = paired_references(generated.records, reference.records if reference else None, Path())
    lacking = {name: _lacks(metric, reference, training, pairs) for name, metric in metrics.items()}
    active = [metric for name, metric in metrics.items() if not lacking[name]]
    sets = [one for one in (generated, reference, training) if one is not None]
    dealer = _Dealer(active, sample_rate or common_rate(generated), sum(len(one.records) for one in sets), progress)
    dealer.deal_generated(generated, reference, pairs)
    if reference is not None:
        dealer.deal_rest("reference", reference)
    if training is not None:
        dealer.deal_rest("training", training)
    return {
        name: metric.compute()
        if why is None
        else MetricResult(None, 0, {why: len(generated.records)}, unit=metric.unit)
        for (name, metric), why in zip(metrics.items(), lacking.values())
    }


class _Dealer:
    """Reads every clip once, a chunk at a time, and hands it to the metrics."""

    def __init__(
        self, metrics: Sequence[Metric], rate: int, total: int, progress: Callable[[int, int], None] | None
    ) -> None:
        self.rate, self.total, self.progress, self.done = rate, total, progress, 0
        self.paired = [metric for metric in metrics if metric.needs.paired]
        self.unpaired = [metric for metric in metrics if not metric.needs.paired]
        self.seen: set[int | str] = set()  # references that were given already

    def deal_generated(self, generated: Collection, reference: Collection | None, pairs: Sequence[Any]) -> None:
        """All generated clips, and with them the references that are theirs."""
        own = Collection("reference", [])
        for indices in _chunks(range(len(generated.records))):
            clips = generated.clips(indices, self.rate)
            fresh: list[Clip] = []
            partners = [self._partner(pairs[i], reference, own, fresh) for i in indices]
            self._tell(len(indices))
            whole = [(one, other) for one, other in zip(clips, partners) if one is not None and other is not None]
            alone = sum(one is not None and other is None for one, other in zip(clips, partners))
            for metric in self.paired:
                metric.update([one for one, _ in whole], [other for _, other in whole])
                if alone:
                    metric.num_skipped["no reference that can be read"] += alone
            for metric in self.unpaired:
                metric.update([clip for clip in clips if clip is not None], fresh)

    def deal_rest(self, which: str, collection: Collection) -> None:
        """What was not given yet."""
        rest = [i for i in range(len(collection.records)) if which == "training" or i not in self.seen]
        for indices in _chunks(rest):
            clips = [clip for clip in collection.clips(indices, self.rate) if clip is not None]
            for metric in self.unpaired:
                metric.update(**{which: clips})
            self._tell(len(indices))

    def _partner(self, pair: Any, reference: Collection | None, own: Collection, fresh: list[Clip]) -> Clip | None:
        if pair is None:
            return None
        clip = reference.clips([pair], self.rate)[0] if isinstance(pair, int) else own.read_clip(pair, self.rate)
        key = pair if isinstance(pair, int) else pair["audio_path"]
        if key not in self.seen:
            self.seen.add(key)
            fresh += [clip] if clip is not None else []
            self._tell(int(isinstance(pair, int)))
        return clip

    def _tell(self, count: int) -> None:
        self.done += count
        if self.progress is not None:
            self.progress(self.done, self.total)


def common_rate(generated: Collection) -> int:
    """Hz of the first generated clip: what the generator makes is compared as it is, references are taken to it."""
    return int(generated.records[0]["sample_rate"])


def _lacks(
    metric: Metric, reference: Collection | None, training: Collection | None, pairs: Sequence[Any]
) -> str | None:
    needs = metric.needs
    if needs.paired and all(pair is None for pair in pairs):
        return "needs a reference of the same id" if reference else "needs references"
    if needs.reference and not needs.paired and reference is None and all(pair is None for pair in pairs):
        return "needs references"
    if needs.training and training is None:
        return "needs the training clips"
    return None


def _chunks(indices: Sequence[int]) -> Iterator[Sequence[int]]:
    for start in range(0, len(indices), _CHUNK):
        yield indices[start : start + _CHUNK]


# --------------------------------------------------------------------------------------------------------------- table


def table(
    results: Mapping[str, MetricResult],
    metrics: Mapping[str, Metric],
    beside: Mapping[str, Mapping[str, MetricResult]] | None = None,
) -> str:
    """A line a metric: value, interval, anchors, what was used and what was left out.

    Args:
        beside: name of a column -> what other clips than the generated ones score.
    """
    beside = beside or {}
    rows = [("metric", "value", "95 % interval", *beside, "floor", "ceiling", "used", "left out")]
    for name, result in results.items():
        arrow = {True: " ↑", False: " ↓", None: ""}[metrics[name].higher_is_better]
        interval = f"{_number(result.low)} .. {_number(result.high)}" if result.low is not None else "-"
        skipped = ", ".join(f"{count} {reason}" for reason, count in result.num_skipped.items())
        value = f"{_number(result.value)} {result.unit}".strip() if result.value is not None else "-"
        anchors = _number(result.floor), _number(result.ceiling)
        others = [_number(found[name].value) if name in found else "-" for found in beside.values()]
        rows.append((name + arrow, value, interval, *others, *anchors, str(result.num_used), skipped))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    for name, result in results.items():
        if (at := result.details.get("value_at_floor")) is not None:
            num = result.details["floor_num_clips"], result.details["floor_num_reference"]
            lines.append(f"{name}: the floor is for {num[0]} against {num[1]} clips; the value there {_number(at)}")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:.4g}"


def check_metrics(metrics: Mapping[str, Any]) -> dict[str, Metric]:
    """`metrics` without those set to null.

    Raises:
        UserError: there is none, or one is no metric.
    """
    chosen = {str(name): metric for name, metric in metrics.items() if metric is not None}
    if not chosen:
        raise UserError("metrics: there is none")
    for name, metric in chosen.items():
        if not isinstance(metric, Metric):
            raise UserError(f"metrics.{name}: a {type(metric).__name__} is no metric (components.metrics.Metric)")
    return chosen

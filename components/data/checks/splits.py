"""What can only be seen by looking at several clips, or several manifests, at once."""

from __future__ import annotations

from itertools import combinations, groupby
from typing import Any, NamedTuple

import numpy as np

from components.data.checks.problems import Problem
from components.data.checks.survey import Split, Survey
from components.data.checks.text import speed_limits

_EXAMPLES = 5


def compare_clips(survey: Survey, splits: list[Split]) -> None:
    """Find the same audio twice or with other targets, and outliers in the speed of speech."""
    survey.execute("CREATE INDEX sounds_by_hash ON sounds (hash)")
    _same_audio(survey, splits)
    _unusual_speeds(survey, splits)


def _same_audio(survey: Survey, splits: list[Split]) -> None:
    """Walk over the groups of clips whose decoded samples are equal, bit by bit."""
    rows = survey.execute(
        """SELECT hash, n, split, id, text_key, classes FROM sounds JOIN clips USING (n)
           WHERE hash IN (SELECT hash FROM sounds WHERE hash IS NOT NULL GROUP BY hash HAVING COUNT(*) > 1)
           ORDER BY hash, n"""
    )
    for _, group in groupby(rows, key=lambda row: row[0]):
        _judge_group(survey, splits, [_Clip(*row[1:]) for row in group])


class _Clip(NamedTuple):
    """A clip among others with the same audio: its number, its split's, its id, digests of its text and its labels."""

    number: int
    split: int
    id: str
    text: bytes | None
    classes: bytes | None


def _judge_group(survey: Survey, splits: list[Split], group: list[_Clip]) -> None:
    first_of_split: dict[int, _Clip] = {}
    first_of_text: dict[bytes | None, _Clip] = {}
    first_of_classes: dict[bytes | None, _Clip] = {}
    for clip in group:
        first_of_split.setdefault(clip.split, clip)
        first_of_text.setdefault(clip.text, clip)
        first_of_classes.setdefault(clip.classes, clip)
    for clip in group:
        if splits[clip.split].is_reference:
            continue
        problems = {}  # by code: one of a kind is enough
        twin = first_of_split[clip.split]
        if twin is not clip:
            problems["duplicate_audio"] = f"as {twin.id!r}"
        for split, twin in first_of_split.items():
            if split != clip.split:
                code = "leaked_audio" if splits[split].is_reference else "shared_audio"
                problems.setdefault(code, f"as {twin.id!r} of {splits[split].name}")
        if odd := _other(first_of_text, clip.text) or _other(first_of_classes, clip.classes):
            problems["conflicting_targets"] = f"as {odd.id!r} of {splits[odd.split].name}"
        survey.add_problems(clip.number, [Problem(*found) for found in problems.items()])


def _other(first_of: dict[bytes | None, _Clip], value: bytes | None) -> _Clip | None:
    """A clip that says something else; one that says nothing contradicts nobody."""
    if value is None:
        return None
    return next((clip for said, clip in first_of.items() if said not in (value, None)), None)


def _unusual_speeds(survey: Survey, splits: list[Split]) -> None:
    """Characters a second against those of the same language in the same manifest."""
    for split in splits:
        if split.is_reference:
            continue
        languages = survey.execute("SELECT DISTINCT language FROM clips WHERE split = ?", (split.number,)).fetchall()
        for (language,) in languages:
            where = "FROM clips JOIN sounds USING (n) WHERE split = ? AND language = ? AND chars > 0 AND seconds > 0"
            values = (split.number, language)
            limits = speed_limits(survey.column(f"SELECT chars / seconds {where}", values))
            if limits is None:
                continue
            beyond = f"SELECT n, chars / seconds {where} AND (chars / seconds < ? OR chars / seconds > ?)"
            for number, speed in survey.execute(beyond, (*values, *limits)).fetchall():
                usual = f"{speed:.1f} a second; {limits[0]:.1f} to {limits[1]:.1f} would be usual here"
                survey.add_problems(number, [Problem("chars_per_second", usual)])


def overlaps(survey: Survey, splits: list[Split]) -> list[dict[str, Any]]:
    """What each two manifests have in common: speakers, texts, and recordings by their decoded samples.

    Returns:
        Rows `{"splits": [name, name], "what": "speakers" | "texts" | "recordings", "shared": int, "of": [int, int],
        "examples": [str]}`; rows of things that neither has are left out.
    """
    tables = {
        "speakers": "SELECT DISTINCT speaker AS what FROM clips WHERE split = ? AND speaker IS NOT NULL",
        "texts": "SELECT DISTINCT text_key AS what FROM clips WHERE split = ? AND text_key IS NOT NULL",
        "recordings": "SELECT DISTINCT hash AS what FROM sounds JOIN clips USING (n) WHERE split = ? AND hash NOTNULL",
    }
    rows = []
    for one, other in combinations(splits, 2):
        for what, table in tables.items():
            counts = [_count(survey, table, (split.number,)) for split in (one, other)]
            if not all(counts):
                continue
            both = f"SELECT what FROM ({table}) INTERSECT SELECT what FROM ({table})"
            numbers = (one.number, other.number)
            shared = _count(survey, both, numbers)
            row = {"splits": [one.name, other.name], "what": what, "shared": shared, "of": counts}
            rows.append(row | {"examples": _examples(survey, what, both, numbers) if shared else []})
    return rows


def _count(survey: Survey, statement: str, values: tuple) -> int:
    return survey.execute(f"SELECT COUNT(*) FROM ({statement})", values).fetchone()[0]


def _examples(survey: Survey, what: str, both: str, numbers: tuple[int, int]) -> list[str]:
    found = [row[0] for row in survey.execute(f"{both} LIMIT {_EXAMPLES}", numbers).fetchall()]
    if what == "speakers":
        return found
    column, table = ("text_key", "clips") if what == "texts" else ("hash", "sounds")
    examples = []
    for value in found:
        number = survey.execute(f"SELECT n FROM {table} WHERE {column} = ? LIMIT 1", (value,)).fetchone()[0]
        record = survey.record(number)
        examples.append(str(record["text"] if what == "texts" else record["id"])[:80])
    return examples


def class_table(splits: list[Split]) -> dict[str, dict[str, list[int]]]:
    """target -> class -> clips in each split, the most frequent class first."""
    table: dict[str, dict[str, list[int]]] = {}
    for split in splits:
        for target, name in split.classes:
            table.setdefault(target, {}).setdefault(name, [other.classes[target, name] for other in splits])
    return {
        target: dict(sorted(classes.items(), key=lambda item: (-sum(item[1]), item[0])))
        for target, classes in sorted(table.items())
    }


def histogram(values: np.ndarray, num_bins: int = 40, is_log: bool = False) -> dict[str, list[float]] | None:
    """Edges and counts for a picture of the bulk: the last 0.5 % at each end are counted in the outer bins.

    Args:
        values: `[N]`; those that are not finite, or not positive on a logarithmic axis, are left out.

    Returns:
        `{"edges": [num_bins + 1], "counts": [num_bins]}`, or None for no values.
    """
    values = values[np.isfinite(values)]
    values = np.log(values[values > 0]) if is_log else values
    if not len(values):
        return None
    lowest, highest = np.percentile(values, [0.5, 99.5]) if len(values) > 200 else (values.min(), values.max())
    if highest - lowest < 0.01 * max(abs(lowest), abs(highest), 0.1):
        lowest, highest = lowest - 0.05 * max(abs(lowest), 0.1), highest + 0.05 * max(abs(highest), 0.1)
    edges = np.linspace(lowest, highest, num_bins + 1)
    counts, _ = np.histogram(values.clip(lowest, highest), edges)
    return {"edges": [float(f"{edge:.5g}") for edge in (np.exp(edges) if is_log else edges)], "counts": counts.tolist()}

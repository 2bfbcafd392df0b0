"""All counts of an examination as one tree, ready for JSON and for the page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from components.data.checks.examine import Options
from components.data.checks.listing import Inventory
from components.data.checks.problems import ERROR, SEVERITIES, WARNING, Catalogue
from components.data.checks.splits import class_table, histogram, overlaps
from components.data.checks.survey import Split, Survey
from components.data.checks.text import MAX_CHARS_PER_SECOND, name_of

_EXAMPLES = 20
_RARE_SHARE = 1e-3
_MOST_CHARACTERS = 60

# name -> (what SELECT, unit, whether the axis is logarithmic)
_HISTOGRAMS = {
    "duration": ("seconds", "s", True),
    "level": ("level_db", "dBFS", False),
    "peak": ("peak", "of full scale", False),
    "chars_per_second": ("chars / seconds", "", True),
    "bandwidth": ("bandwidth", "Hz", False),
}
_BEYOND = {"chars_per_second": MAX_CHARS_PER_SECOND}  # what is no speech would push the rest together
# title -> (column, order, unit)
_EXTREMES = {
    "longest": ("seconds", "DESC", "s"),
    "shortest": ("seconds", "ASC", "s"),
    "quietest": ("level_db", "ASC", "dBFS"),
    "loudest": ("level_db", "DESC", "dBFS"),
    "most characters a second": ("chars / seconds", "DESC", "characters/s"),
    "fewest characters a second": ("chars / seconds", "ASC", "characters/s"),
}
_CHECKED = "FROM clips JOIN sounds USING (n) WHERE split IN (SELECT number FROM checked)"


def summarise(
    survey: Survey,
    splits: list[Split],
    verdicts: Mapping[int, Counter[str]],
    catalogue: Catalogue,
    inventory: Inventory,
    options: Options,
) -> dict[str, Any]:
    """The report; `verdicts` are number of split -> kept, dropped, warned, as the lists were written."""
    survey.execute("CREATE TEMP TABLE checked AS SELECT DISTINCT split AS number FROM clips WHERE 0")
    for split in splits:
        if not split.is_reference:
            survey.execute("INSERT INTO checked VALUES (?)", (split.number,))
    manifests = [_manifest(survey, split, verdicts[split.number]) for split in splits]
    checked = [row for row, split in zip(manifests, splits) if not split.is_reference]
    total = {key: sum(row[key] for row in checked) for key in ("clips", "kept", "dropped", "warned")}
    total["hours"] = round(sum(row["hours"] for row in checked), 6)
    total["bad_fraction"] = round(total["dropped"] / total["clips"], 6) if total["clips"] else 1.0
    classes = class_table(splits)
    shared = overlaps(survey, splits)
    audio = _audio(survey)
    return {
        "total": total,
        "manifests": manifests,
        "findings": _findings(splits, classes, shared, audio, inventory, options),
        "problems": _problems(survey, splits, catalogue),
        "audio": audio,
        "histograms": _histograms(survey),
        "extremes": {title: _extreme(survey, *what) for title, what in _EXTREMES.items()},
        "classes": classes,
        "overlaps": shared,
        "characters": _characters(inventory, options),
    }


def _histograms(survey: Survey) -> dict[str, Any]:
    found = {}
    for name, (column, unit, is_log) in _HISTOGRAMS.items():
        values = survey.column(f"SELECT {column} {_CHECKED} AND {column} <= ?", (_BEYOND.get(name, 1e9),))
        if picture := histogram(values, is_log=is_log):
            found[name] = {"unit": unit, "logarithmic": is_log} | picture
    return found


def _manifest(survey: Survey, split: Split, verdict: Counter[str]) -> dict[str, Any]:
    seconds = survey.execute("SELECT SUM(seconds) FROM clips JOIN sounds USING (n) WHERE split = ?", (split.number,))
    return {
        "name": split.name,
        "path": split.path,
        "role": "against" if split.is_reference else "checked",
        "clips": split.num_clips + split.num_bad_lines,
        "kept": verdict["kept"],
        "dropped": verdict["dropped"],
        "warned": verdict["warned"],
        "hours": round((seconds.fetchone()[0] or 0) / 3600, 6),
        "speakers": survey.execute(
            "SELECT COUNT(DISTINCT speaker) FROM clips WHERE split = ?", (split.number,)
        ).fetchone()[0],
    }


def _problems(survey: Survey, splits: list[Split], catalogue: Catalogue) -> list[dict[str, Any]]:
    """Every kind that was found, the gravest first, with how many clips have it and the first of them."""
    rows = []
    counts = survey.execute("SELECT code, COUNT(DISTINCT n) FROM problems GROUP BY code").fetchall()
    for code, count in counts:
        found = survey.execute(
            "SELECT clips.split, clips.id, clips.source, problems.detail FROM problems JOIN clips USING (n) "
            f"WHERE code = ? ORDER BY n LIMIT {_EXAMPLES}",
            (code,),
        ).fetchall()
        examples = [_example(survey, splits[split], *row) for split, *row in found]
        rows.append(_problem(catalogue, code, count, examples))
    bad_lines = survey.execute(
        "SELECT reason, COUNT(*) FROM bad_lines WHERE split IN (SELECT number FROM checked) GROUP BY reason"
    ).fetchall()
    for reason, count in bad_lines:
        found = survey.execute(
            f"SELECT id, place, detail FROM bad_lines WHERE reason = ? LIMIT {_EXAMPLES}", (reason,)
        ).fetchall()
        examples = [{"id": identifier or "", "path": place, "detail": detail} for identifier, place, detail in found]
        rows.append(_problem(catalogue, f"line/{reason}", count, examples))
    rows = [row for row in rows if row["severity"] in SEVERITIES]
    return sorted(rows, key=lambda row: (SEVERITIES.index(row["severity"]), -row["clips"], row["code"]))


def _problem(catalogue: Catalogue, code: str, count: int, examples: list[dict[str, str]]) -> dict[str, Any]:
    kind = catalogue.kind(code)
    severity = catalogue.severity(code)
    what = {"code": code, "severity": severity, "title": kind.title, "remedy": kind.remedy}
    return what | {"clips": count, "examples": examples}


def _example(survey: Survey, split: Split, identifier: str, source: str, detail: str) -> dict[str, str]:
    return {"id": identifier, "path": survey.path_of(source), "detail": detail, "split": split.name}


def _extreme(survey: Survey, column: str, order: str, unit: str) -> list[dict[str, Any]]:
    rows = survey.execute(
        f"SELECT clips.id, {column}, source {_CHECKED} AND {column} IS NOT NULL ORDER BY {column} {order} LIMIT 5"
    ).fetchall()
    return [
        {"id": identifier, "value": round(value, 3), "unit": unit, "path": survey.path_of(source)}
        for identifier, value, source in rows
    ]


def _audio(survey: Survey) -> dict[str, Any]:
    """How many clips and hours there are of every rate, number of channels and encoding."""
    rows = survey.execute(
        f"SELECT rate, channels, encoding, COUNT(*), SUM(seconds) {_CHECKED} GROUP BY 1, 2, 3 ORDER BY 4 DESC"
    ).fetchall()
    names = ("sample_rate", "channels", "encoding", "clips", "hours")
    kinds = [dict(zip(names, (*row, round(seconds / 3600, 6)))) for *row, seconds in rows]
    rates: Counter[int] = Counter()
    channels: Counter[int] = Counter()
    for kind in kinds:
        rates[kind["sample_rate"]] += kind["clips"]
        channels[kind["channels"]] += kind["clips"]
    return {"kinds": kinds, "sample_rates": dict(rates.most_common()), "channels": dict(channels.most_common())}


def _characters(inventory: Inventory, options: Options) -> dict[str, Any]:
    """The alphabet of the texts, and which characters are rare enough to be slips."""
    rare = [
        {"character": character, "name": name_of(character), "clips": count, "first": inventory.first[character]}
        for character, count in sorted(inventory.clips.items(), key=lambda item: (item[1], item[0]))
        if count <= max(2, _RARE_SHARE * inventory.num_texts) and inventory.num_texts > 100
    ]
    return {
        "num_texts": inventory.num_texts,
        "alphabet": "".join(sorted(inventory.clips)),
        "outside": {c: n for c, n in inventory.clips.most_common() if c not in options.vocabulary.characters}
        if options.vocabulary
        else {},
        "rare": rare[:_MOST_CHARACTERS],
        "num_rare": len(rare),
    }


def _findings(
    splits: list[Split],
    classes: dict[str, dict[str, list[int]]],
    shared: list[dict[str, Any]],
    audio: dict[str, Any],
    inventory: Inventory,
    options: Options,
) -> list[dict[str, str]]:
    """Sentences about whole manifests."""
    found = [*_rate_findings(audio, options), *_class_findings(splits, classes)]
    for row in shared:
        if not row["shared"]:
            continue
        (one, other), (of_one, of_other) = row["splits"], row["of"]
        what = row["what"] if row["shared"] > 1 else row["what"].removesuffix("s")
        common = f"{row['shared']:,} {what} in common, of {of_one:,} and {of_other:,}"
        severity = ERROR if row["what"] == "recordings" else WARNING
        found.append({"severity": severity, "sentence": f"{one} and {other} have {common}"})
    if inventory.swapped_case > 0.5 * max(1, inventory.num_texts):
        sentence = f"{inventory.swapped_case:,} texts would fit the vocabulary in the other case: lower or upper them"
        found.append({"severity": WARNING, "sentence": sentence})
    return sorted(found, key=lambda finding: SEVERITIES.index(finding["severity"]))


def _rate_findings(audio: dict[str, Any], options: Options) -> list[dict[str, str]]:
    found = []
    rates: dict[int, int] = audio["sample_rates"]
    total = sum(rates.values())
    if len(rates) > 1:
        listed = ", ".join(f"{count:,} at {rate} Hz" for rate, count in rates.items())
        found.append({"severity": WARNING, "sentence": f"sample rates are mixed: {listed}"})
    model = options.sample_rate
    if model is None:
        return found
    below = sum(count for rate, count in rates.items() if rate < model)
    above = sum(count for rate, count in rates.items() if rate > model)
    if below:
        sentence = f"{below:,} of {total:,} clips have a rate below the model's {model} Hz: the upper band is empty"
        found.append({"severity": WARNING, "sentence": sentence})
    if above:
        sentence = f"{above:,} of {total:,} clips lose what they have above {model // 2} Hz, half of the model's rate"
        found.append({"severity": WARNING, "sentence": sentence})
    return found


def _class_findings(splits: list[Split], classes: dict[str, dict[str, list[int]]]) -> list[dict[str, str]]:
    found = []
    for target, counts in classes.items():
        for index, split in enumerate(splits):
            if not any(count[index] for count in counts.values()):
                continue  # this split has no such target
            absent = [name for name, count in counts.items() if not count[index]]
            if absent:
                shown = ", ".join(absent[:8]) + (f", and {len(absent) - 8} more" if len(absent) > 8 else "")
                sentence = f"{target}: {len(absent)} of {len(counts)} classes are absent from {split.name}: {shown}"
                found.append({"severity": WARNING, "sentence": sentence})
        singles = [name for name, count in counts.items() if sum(count) == 1]
        if singles and len(singles) < len(counts):
            shown = ", ".join(singles[:8]) + (f", and {len(singles) - 8} more" if len(singles) > 8 else "")
            found.append({"severity": WARNING, "sentence": f"{target}: only one clip each has {shown}"})
    return found


def share(part: float, whole: float) -> str:
    """A percentage for a person."""
    percent = 100 * part / whole if whole else 0.0
    if percent in (0, 100) or 0.1 <= percent < 99.95:
        return f"{percent:.1f} %"
    return f"{min(max(percent, 0.01), 99.99):.2f} %"  # neither none nor all

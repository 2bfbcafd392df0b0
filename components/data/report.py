"""The doctor's page: one HTML file with everything inside, to be opened by a person, online or not."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

from components.data.checks.charts import histogram_svg, number
from components.data.checks.problems import ERROR, NOTE, WARNING
from components.data.checks.summary import share
from utils.io import write_text

_STYLE = Path(__file__).with_name("report.css")
_MOST_ROWS = 60
_MOST_NAMES = 4
_HEADINGS = {ERROR: "Errors", WARNING: "Warnings", NOTE: "Notes"}
_MEANINGS = {
    ERROR: "these clips are in dropped.jsonl",
    WARNING: "these clips are in kept.jsonl, and listed in warnings.jsonl",
    NOTE: "counted only",
}
_CHARTS = {
    "duration": "Duration",
    "level": "Level",
    "peak": "Peak",
    "chars_per_second": "Characters a second",
    "bandwidth": "Bandwidth",
}


def write_page(path: Path, report: dict[str, Any]) -> None:
    """Write the page for the content of a `report.json`, whole or not at all."""
    names = [row["name"] for row in report["manifests"] if row["role"] == "checked"]
    title = ", ".join(names) if len(names) <= _MOST_NAMES else f"{len(names)} manifests"
    sections = [
        _head(title, report),
        _findings(report["findings"]),
        *(_problems(report["problems"], severity) for severity in (ERROR, WARNING, NOTE)),
        _charts(report["histograms"]),
        _manifests(report["manifests"]),
        _kinds(report["audio"]["kinds"]),
        *(_classes(target, classes, report["manifests"]) for target, classes in report["classes"].items()),
        _overlaps(report["overlaps"]),
        _extremes(report["extremes"]),
        _characters(report["characters"]),
        _foot(report["run"]),
    ]
    write_text(path, _page(f"{printable(title)}: what the doctor found", "\n".join(filter(None, sections))))


def _page(title: str, body: str) -> str:
    # Nothing is loaded from anywhere, and nothing in a file name or a text can run.
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{escape(title)}</title>
<style>
{_STYLE.read_text(encoding="utf-8")}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


def printable(text: str) -> str:
    """`text` with every character that a person can't see, or that turns the line around, by its code point."""
    if text.isprintable() or (text.isascii() and text.replace("\n", "").isprintable()):
        return text
    return "".join(_shown(character) for character in text)


def _shown(character: str) -> str:
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp"):
        return f"\\u{ord(character):04x}"
    return character


class _Raw(str):
    """HTML of ours, not to be escaped again."""


def _text(value: Any) -> str:
    return value if isinstance(value, _Raw) else escape(printable(str(value)))


def _table(headings: Iterable[str], rows: Iterable[Iterable[Any]], numeric: Iterable[int] = ()) -> str:
    """A table; the columns in `numeric` stand to the right."""
    right = set(numeric)

    def cells(tag: str, values: Iterable[Any]) -> str:
        return "".join(
            f"<{tag}{' class=number' if index in right else ''}>{_text(value)}</{tag}>"
            for index, value in enumerate(values)
        )

    head = f"<thead><tr>{cells('th', headings)}</tr></thead>"
    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f'<div class="scroll"><table>{head}<tbody>{body}</tbody></table></div>'


def _section(title: str, body: str, hint: str = "") -> str:
    aside = f'<p class="hint">{hint}</p>' if hint else ""
    return f"<section><h2>{_text(title)}</h2>{aside}{body}</section>"


def _head(title: str, report: dict[str, Any]) -> str:
    total = report["total"]
    clean = total["kept"] - total["warned"]
    tiles = [
        ("", f"{total['clips']:,}", "clips"),
        ("", _hours(total["hours"]), "decoded"),
        ("good", f"{clean:,}", "without fault"),
        ("warning", f"{total['warned']:,}", "kept with warnings"),
        ("error", f"{total['dropped']:,}", f"dropped, {share(total['dropped'], total['clips'])}"),
    ]
    shown = "".join(
        f'<div class="tile {kind}"><b>{value}</b><span>{label}</span></div>' for kind, value, label in tiles
    )
    parts = {"good": clean, "warning": total["warned"], "error": total["dropped"]}
    bar = "".join(f'<i class="{kind}" style="flex-grow:{count}"></i>' for kind, count in parts.items() if count)
    return f'<header><h1>{_text(title)}</h1><div class="tiles">{shown}</div><div class="bar">{bar}</div></header>'


def _hours(hours: float) -> str:
    if hours >= 1:
        return f"{hours:,.1f} h"
    return f"{hours * 60:.1f} min" if hours * 60 >= 1 else f"{hours * 3600:.1f} s"


def _findings(findings: list[dict[str, str]]) -> str:
    if not findings:
        return ""
    items = "".join(f'<li class="{row["severity"]}">{_text(row["sentence"])}</li>' for row in findings)
    return _section("Over all", f'<ul class="findings">{items}</ul>')


def _problems(problems: list[dict[str, Any]], severity: str) -> str:
    rows = [row for row in problems if row["severity"] == severity]
    if not rows:
        return ""
    shown = "".join(_problem(row) for row in rows)
    return _section(_HEADINGS[severity], f'<div class="problems">{shown}</div>', _MEANINGS[severity])


def _problem(row: dict[str, Any]) -> str:
    several = len({example.get("split") for example in row["examples"]}) > 1
    headings = ["clip", *(["manifest"] if several else []), "what was seen", "file"]
    table = _table(
        headings,
        (
            [example["id"], *([example["split"]] if several else []), example["detail"], _file(example["path"])]
            for example in row["examples"]
        ),
    )
    unseen = row["clips"] - len(row["examples"])
    more = f'<p class="hint">and {unseen:,} more</p>' if unseen > 0 else ""
    what = f"<span><b>{_text(row['title'])}</b> <em>{_text(row['remedy'])}</em></span><code>{_text(row['code'])}</code>"
    summary = f'<summary><span class="count">{row["clips"]:,}</span>{what}</summary>'
    return f'<details class="{row["severity"]}">{summary}{table}{more}</details>'


def _file(path: str) -> _Raw:
    """The end of a path, which tells files apart, with the whole under the mouse."""
    short = path if len(path) <= 48 else "…" + path[-47:]
    return _Raw(f'<span class="path" title="{_text(path)}">{_text(short)}</span>')


def _charts(histograms: dict[str, dict[str, Any]]) -> str:
    figures = [
        f"<figure><figcaption>{_CHARTS[name]} <span>{_text(found['unit'])}</span></figcaption>"
        f"{histogram_svg(found['edges'], found['counts'], found['logarithmic'], found['unit'])}</figure>"
        for name, found in histograms.items()
    ]
    hint = "the outermost half per cent at either end is in the outer bars"
    return _section("Distributions", f'<div class="charts">{"".join(figures)}</div>', hint) if figures else ""


def _manifests(manifests: list[dict[str, Any]]) -> str:
    rows = [
        [
            row["name"] + (" (compared with)" if row["role"] == "against" else ""),
            f"{row['clips']:,}",
            _hours(row["hours"]),
            *(["", "", ""] if row["role"] == "against" else [f"{row[key]:,}" for key in ("kept", "warned", "dropped")]),
            f"{row['speakers']:,}" if row["speakers"] else "",
        ]
        for row in manifests
    ]
    headings = ("manifest", "clips", "decoded", "kept", "with warnings", "dropped", "speakers")
    return _section("Manifests", _table(headings, rows, range(1, 7)))


def _kinds(kinds: list[dict[str, Any]]) -> str:
    if not kinds:
        return ""
    total = sum(row["clips"] for row in kinds)
    rows = [
        [
            f"{row['sample_rate']} Hz",
            row["channels"],
            row["encoding"],
            f"{row['clips']:,}",
            share(row["clips"], total),
            _hours(row["hours"]),
        ]
        for row in kinds[:_MOST_ROWS]
    ]
    return _section("Files", _table(("rate", "channels", "encoding", "clips", "share", "decoded"), rows, (3, 4, 5)))


def _classes(target: str, classes: dict[str, list[int]], manifests: list[dict[str, Any]]) -> str:
    """Clips of each class in the manifests that have the target at all."""
    columns = [i for i in range(len(manifests)) if any(counts[i] for counts in classes.values())]
    totals = [sum(counts) for counts in classes.values()]
    rows = []
    for name, counts in list(classes.items())[:_MOST_ROWS]:
        bar = _Raw(f'<span class="meter"><i style="width:{100 * sum(counts) / max(totals):.1f}%"></i></span>')
        shown = [_Raw(f"{counts[i]:,}" if counts[i] else '<span class="none">none</span>') for i in columns]
        rows.append([name, bar, *shown])
    table = _table(["class", "", *(manifests[i]["name"] for i in columns)], rows, range(2, 2 + len(columns)))
    more = f'<p class="hint">and {len(classes) - _MOST_ROWS:,} more</p>' if len(classes) > _MOST_ROWS else ""
    hint = f"{len(classes):,} classes, the largest {max(totals) / min(totals):,.1f} times the smallest"
    return _section(f"Classes: {target}", table + more, hint)


def _overlaps(overlaps: list[dict[str, Any]]) -> str:
    if not overlaps:
        return ""
    rows = [
        [
            " and ".join(row["splits"]),
            row["what"],
            f"{row['shared']:,}",
            f"{row['of'][0]:,} and {row['of'][1]:,}",
            ", ".join(row["examples"]),
        ]
        for row in overlaps
        if row["shared"]
    ]
    hint = f"{len(overlaps) - len(rows):,} of {len(overlaps):,} comparisons found nothing in common"
    table = _table(("manifests", "what", "shared", "of", "such as"), rows, (2, 3)) if rows else ""
    return _section("Between manifests", table, hint)


def _extremes(extremes: dict[str, list[dict[str, Any]]]) -> str:
    columns = []
    for title, rows in extremes.items():
        if rows:
            items = ([row["id"], f"{number(row['value'])} {row['unit']}"] for row in rows)
            columns.append(f"<div>{_table((title, ''), items, (1,))}</div>")
    hint = "worth a listen: mistakes gather at the ends"
    return _section("Extremes", f'<div class="columns">{"".join(columns)}</div>', hint) if columns else ""


def _characters(characters: dict[str, Any]) -> str:
    if not characters["num_texts"]:
        return ""
    alphabet = "".join(f"<kbd>{_text(c) if c != ' ' else 'space'}</kbd>" for c in characters["alphabet"][:400])
    hint = f"{len(characters['alphabet']):,} different ones in {characters['num_texts']:,} texts"
    body = f'<p class="alphabet">{alphabet}</p>'
    if characters["outside"]:
        rows = ([_code_point(c), c, f"{count:,}"] for c, count in list(characters["outside"].items())[:_MOST_ROWS])
        body += "<h3>Not in the vocabulary</h3>" + _table(("", "character", "texts"), rows, (2,))
    if characters["rare"]:
        rows = (
            [_code_point(row["character"]), row["character"], row["name"], f"{row['clips']:,}", row["first"]]
            for row in characters["rare"]
        )
        body += "<h3>Rare</h3>" + _table(("", "character", "name", "texts", "first in"), rows, (3,))
    return _section("Characters", body, hint)


def _code_point(character: str) -> str:
    return f"U+{ord(character):04X}"


def _foot(run: dict[str, Any]) -> str:
    speed = f", {run['files_per_second']:,.0f} files/s" if run["files_per_second"] else ""
    known = f"{run['from_cache']:,} of them known from the last time"
    return (
        f"<footer>{run['files']:,} files, {known}, in {run['seconds']:.1f} s{speed}. All counts: report.json.</footer>"
    )

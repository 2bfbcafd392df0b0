"""Scores of a recogniser: `python -m components.metrics asr PREDICTIONS [--against OTHER] [--out FOLDER]`.

PREDICTIONS is JSON Lines, `{"id", "reference", "hypothesis", ...}`, in one file or several (of several processes, say).
What a line lacks, as the reference, the speaker or the duration, may come from `--manifest`, by id.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from components.data.arguments import positive
from components.data.faults import Fault, parse_object
from components.data.manifest import numbered_lines
from components.data.readers import iterate_records
from components.metrics.error_rates import UNITS, PairedComparison
from components.metrics.recognition import plain_text
from components.metrics.recognition_report import RecognitionReport
from components.text import Normalize
from utils.errors import UserError
from utils.io import write_json
from utils.names import did_you_mean

_REFERENCES = ("reference", "ref", "text")
_HYPOTHESES = ("hypothesis", "hyp", "prediction", "pred_text", "text")
_NORMALIZE = {
    "none": None,
    "lower": Normalize(case="lower"),
    "plain": Normalize(case="lower", punctuation="remove"),
    "characters": Normalize(case="lower", punctuation="remove", spaces="remove"),
    "loose": plain_text,
}
_NORMALIZE_HELP = (
    "of both texts before they are compared (none); lower: case; plain: case and punctuation; "
    "characters: these and spaces; loose: as in metrics of generated speech"
)


def main(arguments: list[str]) -> int:
    """The command; returns its exit code.

    Raises:
        UserError: what the prompt says can not be done.
    """
    options = _parser().parse_args(arguments)
    known = {record["id"]: record for record in iterate_records(options.manifest)} if options.manifest else {}
    report = _report(options.predictions, options, known)
    print(report)
    comparison = None
    if options.against:
        other = _report(options.against, options, known)
        comparison = report.against(other)
        print(f"\nagainst {', '.join(options.against)}: {other.headline}\n{told(comparison)}")
    if options.out:
        folder = Path(options.out).expanduser()
        report.write(folder)
        if comparison is not None:
            write_json(folder / "against.json", {"other": options.against, **_plain(comparison)})
        print(f"-> {folder}")
    return 0


def told(comparison: PairedComparison) -> str:
    """A comparison in a sentence."""
    c = comparison
    change = f"{100 * c.difference:+.2f} points"
    interval = f" ({100 * c.interval.low:+.2f} .. {100 * c.interval.high:+.2f})" if c.interval else ""
    if c.p_value is None or c.p_value >= 0.05:
        verdict = "which may be chance"
    else:
        verdict = "better" if c.difference < 0 else "worse"
    p = "" if c.p_value is None else f", p = {c.p_value:.2g} by matched pairs"
    counts = f"{c.num_better} utterances better, {c.num_worse} worse of {c.num_items}"
    return f"difference {change}{interval}: {verdict}{p}; {counts}"


def _plain(comparison: PairedComparison) -> dict[str, Any]:
    content = dict(vars(comparison))
    return content | {"interval": comparison.interval and list(comparison.interval)}


def _report(files: Sequence[str], options: argparse.Namespace, known: dict[str, Any]) -> RecognitionReport:
    rows = [row for file in files for row in _read(Path(file).expanduser())]
    records = [_as_record(row, known.get(str(row.get("id"))), options) for row in rows]
    lacking = [field for field in options.by if not any(_has(record, field) for record in records)]
    if lacking:
        hint = did_you_mean(lacking[0], records[0] if records else ())
        raise UserError(f"--by {lacking[0]}: no utterance of {files[0]} has such a field{hint}")
    return RecognitionReport(
        records,
        unit=options.unit,
        normalize=_NORMALIZE[options.normalize],
        slices=tuple(dict.fromkeys(("speaker", "duration", *options.by))),
        groups=options.groups,
        num_draws=options.num_draws,
        seed=options.seed,
    )


def _has(record: dict[str, Any], field: str) -> bool:
    return field in record or field.partition(".")[0] in record


def _read(path: Path) -> Iterable[dict[str, Any]]:
    for number, line in numbered_lines(path):
        try:
            yield parse_object(line)
        except (Fault, json.JSONDecodeError) as error:
            raise UserError(f"{path}:{number}: {getattr(error, 'detail', error)}") from None


def _as_record(row: dict[str, Any], known: dict[str, Any] | None, options: argparse.Namespace) -> dict[str, Any]:
    """A line with `reference` and `hypothesis`, whatever it calls them."""
    hypothesis = options.hypothesis or next((key for key in _HYPOTHESES if key in row), None)
    references = [options.reference] if options.reference else [key for key in _REFERENCES if key != hypothesis]
    reference = next((source[key] for source in (row, known or {}) for key in references if key in source), None)
    if known is not None and reference is None:
        reference = known.get("text")
    if hypothesis not in row or reference is None:
        missing = "hypothesis" if hypothesis not in row else "reference"
        raise UserError(f"{row.get('id')!r} has no {missing}, only {', '.join(row)}: name its key with --{missing}")
    inherited = {key: known[key] for key in known if key not in row and key != "audio_path"} if known else {}
    return {**inherited, **row, "reference": reference, "hypothesis": row[hypothesis]}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m components.metrics asr", description=__doc__)
    add = parser.add_argument
    add("predictions", nargs="+", help="JSON Lines with a reference and a hypothesis for each utterance")
    add("--against", nargs="+", metavar="FILE", help="the predictions of another system for the same utterances")
    add("--out", metavar="FOLDER", help="summary.json, utterances.jsonl, confusions.jsonl, report.txt")
    add("--manifest", help="where references, speakers and durations come from that the predictions lack")
    add("--unit", choices=UNITS, default="word", help="word: WER; char: CER, spaces count; token: PER (word)")
    add("--normalize", choices=list(_NORMALIZE), default="none", help=_NORMALIZE_HELP)
    add("--by", nargs="+", default=[], metavar="FIELD", help="more fields to report apart: accent, labels.room")
    add("--groups", metavar="FIELD", help="draw all utterances of a speaker, say, together for the intervals")
    add("--reference", metavar="KEY", help=f"where the reference is ({', '.join(_REFERENCES)})")
    add("--hypothesis", metavar="KEY", help=f"where the hypothesis is ({', '.join(_HYPOTHESES)})")
    add("--num-draws", type=positive(int), default=1000, help="of bootstrap intervals (1000)")
    add("--seed", type=int, default=0, help="of these (0)")
    return parser

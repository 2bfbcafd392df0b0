"""The `doctor`: what is wrong with a collection of audio, before a model finds out.

    python -m components.data doctor train.jsonl --against test.jsonl --sample-rate 16000

Every file is decoded once. In the output folder there are then `kept.jsonl`, `dropped.jsonl` and `warnings.jsonl` with
the reasons, `report.json` with all counts, and `index.html` to look at. docs/doctor.md has the details.
"""

from __future__ import annotations

import argparse
import glob
import logging
import os
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from components.data.arguments import fraction, positive, whole
from components.data.checks.cache import open_cache
from components.data.checks.examine import Options, Work, examine_audio
from components.data.checks.listing import Inventory, list_manifest
from components.data.checks.problems import ERROR, LINE, WARNING, Catalogue, Problem
from components.data.checks.splits import compare_clips
from components.data.checks.summary import share, summarise
from components.data.checks.survey import Split, Survey, open_survey
from components.data.checks.text import Vocabulary
from components.data.manifest import Record, manifest_writer
from components.data.report import printable, write_page
from utils.errors import UserError
from utils.io import write_json


def main(arguments: list[str]) -> int:
    """Examine manifests; see `--help`.

    Returns:
        0 where the share of dropped clips is at most `--max-bad-fraction`, else 1; 1 also for a manifest without clips.

    Raises:
        UserError: a file named at the prompt is missing or unusable.
    """
    chosen = _parser().parse_args(arguments)
    splits = _splits(chosen.manifests, chosen.against)
    vocabulary = Vocabulary.from_file(chosen.vocab) if chosen.vocab else None
    options = Options(chosen.sample_rate, vocabulary, chosen.frame_rate, chosen.min_duration, chosen.max_duration)
    catalogue = Catalogue(dict(chosen.severity))
    out = Path(chosen.out or f"{chosen.manifests[0].rstrip('/')}.doctor")
    report = examine(splits, out, options, catalogue, chosen.num_processes)
    print(_screen(report, out))
    return int(report["total"]["bad_fraction"] > chosen.max_bad_fraction)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m components.data doctor",
        description="Find what is wrong with a collection of audio: lists of kept and dropped clips, and a page.",
        epilog="exit code: 0 fine, 1 more than --max-bad-fraction of the clips were dropped, 2 a mistake at the prompt",
    )
    add = parser.add_argument
    add("manifests", nargs="+", metavar="MANIFEST", help="any layout that can be read; several are compared")
    add("--against", nargs="+", default=[], metavar="OTHER", help="other splits: clips found there too are dropped")
    add("--out", metavar="DIR", help="where the lists and the page go (default: MANIFEST.doctor)")
    add("--sample-rate", type=positive(int), metavar="HZ", help="of the model: says where bandwidth is lost")
    add("--vocab", metavar="FILE", help="what the model can write: a token a line, or a tokenizer's vocab.json")
    add("--frame-rate", type=positive(float), metavar="HZ", help="frames a second out of a CTC model")
    add("--min-duration", type=positive(float), default=0.0, metavar="S", help="drop shorter clips")
    add("--max-duration", type=positive(float), metavar="S", help="drop longer clips")
    add("--max-bad-fraction", type=fraction, default=0.0, metavar="F", help="dropped share that is fine (default: 0)")
    add("--severity", type=_severity, action="append", default=[], metavar="PROBLEM=LEVEL",
        help="make a problem an error (dropped), a warning (kept, listed), a note (counted) or off")  # fmt: skip
    add("--num-processes", type=whole, default=_num_cores(), metavar="N", help="that decode (default: %(default)s)")
    return parser


def _severity(text: str) -> tuple[str, str]:
    code, equals, level = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"expected PROBLEM=LEVEL, not {text!r}")
    return code, level


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _splits(manifests: list[str], against: list[str]) -> list[Split]:
    """Manifests with names that tell them apart: their stems, with as much of the path as it takes."""
    paths = [*manifests, *against]
    for path in paths:
        if not Path(path).exists() and not glob.glob(path):
            raise UserError(f"there is no manifest {path}")
    if twice := [path for path, count in Counter(map(os.path.abspath, paths)).items() if count > 1]:
        raise UserError(f"{twice[0]} was given twice")
    parts = [Path(os.path.abspath(path)).with_suffix("").parts for path in paths]
    depth = next((d for d in range(1, max(map(len, parts))) if len({part[-d:] for part in parts}) == len(parts)), None)
    names = ["/".join(part[-depth:]) for part in parts] if depth else paths
    return [Split(i, path, name, i >= len(manifests)) for i, (path, name) in enumerate(zip(paths, names))]


def examine(
    splits: list[Split], out: Path, options: Options, catalogue: Catalogue, num_processes: int
) -> dict[str, Any]:
    """Examine and write everything to `out`; the content of `report.json` comes back."""
    began = time.monotonic()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out: cannot write to {out}: {error.strerror}") from None
    inventory = Inventory()
    with open_cache(out / "cache.sqlite") as cache, open_survey(out) as survey:
        with _quiet("components.data.readers"):  # what they log is in the report
            for split in splits:
                list_manifest(survey, split, inventory, options.vocabulary)
        survey.index()
        decoding = time.monotonic()
        with _progress(survey) as tick:
            work = examine_audio(survey, splits, cache, options, num_processes, tick)
        decoding = time.monotonic() - decoding
        compare_clips(survey, splits)
        verdicts = _write_lists(survey, splits, catalogue, out)
        report = summarise(survey, splits, verdicts, catalogue, inventory, options)
    report["run"] = _run(work, decoding, time.monotonic() - began, options, num_processes)
    write_json(out / "report.json", report)
    write_page(out / "index.html", report)
    return report


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def _progress(survey: Survey) -> Iterator[Any]:
    from tqdm import tqdm

    total = survey.execute("SELECT COUNT(DISTINCT source) FROM clips").fetchone()[0]
    with tqdm(total=total, unit="file", disable=not sys.stderr.isatty(), leave=False) as bar:
        yield bar.update


def _run(work: Work, decoding: float, total: float, options: Options, num_processes: int) -> dict[str, Any]:
    num_files = work.num_decoded + work.num_cached
    return {
        "files": num_files,
        "from_cache": work.num_cached,
        "decoded": work.num_decoded,
        "num_processes": num_processes,
        "seconds": round(total, 3),
        "files_per_second": round(num_files / decoding, 1) if decoding else None,
        "sample_rate": options.sample_rate,
        "frame_rate": options.frame_rate,
        "min_duration": options.min_duration,
        "max_duration": options.max_duration,
        "vocabulary": len(options.vocabulary.pieces) if options.vocabulary else None,
    }


def _write_lists(survey: Survey, splits: list[Split], catalogue: Catalogue, out: Path) -> dict[int, Counter[str]]:
    """Write the three lists; with several manifests also `kept.<name>.jsonl` of each."""
    verdicts: dict[int, Counter[str]] = defaultdict(Counter)
    checked = [split for split in splits if not split.is_reference]
    with ExitStack() as files:
        kept, dropped, warned = (
            files.enter_context(manifest_writer(out / f"{name}.jsonl")) for name in ("kept", "dropped", "warnings")
        )
        kept_of = {
            split.number: files.enter_context(manifest_writer(out / f"kept.{split.name.replace('/', '.')}.jsonl"))
            for split in checked
            if len(checked) > 1
        }
        for number, split, record, problems in survey.clips_with_problems():
            if splits[split].is_reference:
                continue
            errors, warnings = (
                [problem for problem in problems if catalogue.severity(problem.code) == level]
                for level in (ERROR, WARNING)
            )
            if errors:
                verdicts[split]["dropped"] += 1
                dropped(_entry(record["id"], splits[split].path, errors) | {"record": record})
                continue
            verdicts[split]["kept"] += 1
            record = survey.completed(number, record)
            for write in (kept, kept_of.get(split)):
                if write:
                    write(record)
            if warnings:
                verdicts[split]["warned"] += 1
                warned(_entry(record["id"], splits[split].path, warnings))
        for split, identifier, place, reason, detail in survey.execute("SELECT * FROM bad_lines"):
            if not splits[split].is_reference:
                verdicts[split]["dropped"] += 1
                dropped(_entry(identifier, place, [Problem(LINE + reason, detail)]) | {"record": None})
    return verdicts


def _entry(identifier: str | None, source: str, problems: list[Problem]) -> Record:
    reasons = [{"code": problem.code, "detail": problem.detail} for problem in problems]
    return {"id": identifier, "source": source, "reasons": reasons}


def _screen(report: dict[str, Any], out: Path) -> str:
    """The summary that fits on one screen."""
    total, run = report["total"], report["run"]
    names = ", ".join(row["name"] for row in report["manifests"] if row["role"] == "checked")
    lines = [
        f"{names}: {total['clips']:,} clips, {total['hours']:.2f} h",
        f"  kept {total['kept']:,}   dropped {total['dropped']:,} ({share(total['dropped'], total['clips'])})"
        f"   kept with warnings {total['warned']:,}",
    ]
    for severity in ("error", "warning", "note"):
        rows = [row for row in report["problems"] if row["severity"] == severity]
        if rows:
            lines.append(f"{severity}s")
        for row in rows[:8]:
            example = row["examples"][0]
            lines.append(
                f"  {row['clips']:>8,}  {row['title']}  [{example['id'] or example['path']}: {example['detail']}]"
            )
        if len(rows) > 8:
            lines.append(f"            and {len(rows) - 8} kinds more")
    if report["findings"]:
        lines.append("over all")
        lines += [f"  {finding['sentence']}" for finding in report["findings"][:8]]
    speed = f"{run['files']:,} files ({run['from_cache']:,} from the cache) in {run['seconds']:.1f} s"
    lines += [f"{speed}; see {out / 'index.html'}"]
    return "\n".join(printable(line)[:160] for line in lines)

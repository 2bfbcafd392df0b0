"""Scores of generated audio: `python -m components.metrics GENERATED [REFERENCE] --metrics NAME|FILE [--out FILE]`.

GENERATED, REFERENCE and `--training` are each a folder, a manifest, or any other layout that can be read. Clips are
paired by id, or by the key `reference_path` (or `reference_id`) of GENERATED. docs/metrics.md explains the metrics.
What recognisers wrote is scored by `python -m components.metrics asr PREDICTIONS [--against PREDICTIONS]`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from components.metrics.evaluation import Collection, check_metrics, common_rate, evaluate, paired_references, table
from utils.build import build
from utils.compose import COMPOSE_ERRORS, CONFIGS, Request
from utils.compose_errors import one_sentence
from utils.config import register_omegaconf_resolvers
from utils.errors import UserError
from utils.io import write_json, write_jsonl
from utils.names import did_you_mean
from utils.validate import check_or_raise


def main(arguments: list[str]) -> int:
    """The command; returns its exit code.

    Raises:
        UserError: what the prompt says can not be done.
    """
    if arguments[:1] == ["asr"]:
        from components.metrics.recognition_command import main as score_recogniser

        return score_recogniser(arguments[1:])
    options = _parser().parse_intermixed_args(arguments)
    if "=" in (options.reference or "") and not Path(options.reference).exists():
        options.reference, options.settings = None, [options.reference, *options.settings]
    begin = time.monotonic()
    generated = Collection.read("generated", options.generated, options.max_clips)
    reference = Collection.read("reference", options.reference) if options.reference else None
    training = Collection.read("training", options.training) if options.training else None
    rate = options.sample_rate or common_rate(generated)
    metrics = build_metrics(options.metrics, options.settings, sample_rate=rate, judge_dir=options.judge)
    source = Path(options.generated)
    folder = source if source.is_dir() else source.parent
    pairs = paired_references(generated.records, reference.records if reference else None, folder.absolute())
    results = evaluate(metrics, generated, reference, training, pairs, rate, _progress(sys.stderr.isatty()))
    print(table(results, metrics))
    sets = [one for one in (generated, reference, training) if one is not None]
    left_out = {one.name: dict(one.left_out) for one in sets if one.left_out}
    for name, reasons in left_out.items():
        print(f"{name}: left out {', '.join(f'{count} {reason}' for reason, count in reasons.items())}")
    if options.out:
        made_of = {one.name: {"num_clips": len(one.records), "left_out": dict(one.left_out)} for one in sets}
        content = {
            "sources": {"generated": options.generated, "reference": options.reference, "training": options.training},
            "sets": made_of | {"num_pairs": sum(pair is not None for pair in pairs)},
            "sample_rate": rate,
            "seconds": round(time.monotonic() - begin, 2),
            "scores": {name: result.as_dict() for name, result in results.items()},
        }
        _write(write_json, Path(options.out), content)
    if options.items:
        ids = dict.fromkeys(name for result in results.values() for name in result.per_item)
        rows = [{"id": one} | {m: r.per_item[one] for m, r in results.items() if one in r.per_item} for one in ids]
        _write(write_jsonl, Path(options.items), rows)
    return 0


def build_metrics(name: str, settings: Sequence[str] = (), **given: Any) -> dict[str, Any]:
    """Metrics by name, from a config that was checked.

    Args:
        name: an option of `configs/metrics`, or a YAML file of named metrics (`{fad: {_target_: ...}, ...}`).
        settings: `key=value` on top, `fad.num_draws=20`, `pesq=null`.
        given: what the config may point to: `${sample_rate}` in Hz, `${judge_dir}`; None is not given.

    Raises:
        UserError: there is none of that name, or it is not valid.
    """
    register_omegaconf_resolvers()
    node = _load(name)
    if wrong := [setting for setting in settings if "=" not in setting]:
        raise UserError(f"{wrong[0]!r}: expected key=value")
    OmegaConf.set_struct(node, False)  # a mistyped setting is told by the check below
    settings_node = OmegaConf.from_dotlist(list(settings))
    for key in settings_node:
        if key not in node and not OmegaConf.is_dict(settings_node[key]):
            raise UserError(f"{key}: no such metric{did_you_mean(str(key), map(str, node))}")
    known = {key: value for key, value in given.items() if value is not None}
    root = OmegaConf.merge(OmegaConf.create(known), {"metrics": OmegaConf.merge(node, settings_node)})
    root.metrics = {key: value for key, value in root.metrics.items() if value is not None}
    try:
        content = OmegaConf.to_container(root.metrics, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"--metrics {name}: {one_sentence(error)} (--judge, --sample-rate say them)") from None
    checked = OmegaConf.create({"metrics": content})
    check_or_raise(checked)
    try:
        return check_metrics(build(checked, "metrics"))
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):
            raise UserError(f"--metrics {name}: {error.__cause__}") from None
        raise


def _load(name: str) -> DictConfig:
    try:
        if name.endswith((".yaml", ".yml")):
            config = OmegaConf.load(name)
        else:
            config = Request(CONFIGS, f"metrics/{name}").compose().metrics
    except FileNotFoundError:
        raise UserError(f"--metrics: there is no file {name}") from None
    except COMPOSE_ERRORS:
        known = sorted(path.stem for path in (CONFIGS / "metrics").glob("*.yaml"))
        raise UserError(
            f"--metrics: {name!r} is none of {', '.join(known)}, nor a YAML file that can be read"
        ) from None
    if not isinstance(config, DictConfig):
        raise UserError(f"--metrics: {name} is no mapping of named metrics")
    return config


def _write(write: Any, path: Path, content: Any) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, content)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
    print(f"-> {path}")


def _progress(is_terminal: bool) -> Any:
    def tell(done: int, total: int) -> None:
        print(f"\r{done}/{total} clips", end="\n" if done >= total else "", file=sys.stderr, flush=True)

    return tell if is_terminal else None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m components.metrics", description=__doc__)
    add = parser.add_argument
    add(
        "generated",
        help="the clips to score; with `text` and `labels` for metrics that want to know what was asked for",
    )
    add("reference", nargs="?", help="real clips, of the same ids or none")
    add("settings", nargs="*", metavar="key=value", help="changes of the metrics: fad.num_draws=20, pesq=null")
    add("--metrics", required=True, metavar="NAME|FILE", help="an option of configs/metrics, or a YAML file")
    add("--judge", metavar="DIR", help="the folder of a tagging run that is to judge, ${judge_dir} of the metrics")
    add("--training", metavar="CLIPS", help="what the generator was trained on: for copies, and for the floor")
    add("--out", metavar="FILE", help="all results as JSON")
    add("--items", metavar="FILE", help="the scores of each clip as JSON Lines")
    add("--sample-rate", type=int, metavar="HZ", help="to compare at (default: of the first generated clip)")
    add("--max-clips", type=_positive, metavar="N", help="of GENERATED, spread over it")
    return parser


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)

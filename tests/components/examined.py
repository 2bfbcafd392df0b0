"""What tests of the doctor share: examine clips in this process, read the lists back."""

import json
from pathlib import Path

import numpy as np

from components.data import doctor

RATE = 16_000


def noise(seconds: float = 0.8, channels: int = 1, seed: int = 0) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal((round(seconds * RATE), channels))


def write_lines(path: Path, lines: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def examine(*arguments: object, out: Path) -> tuple[int, dict]:
    code = doctor.main([*map(str, arguments), "--out", str(out), "--num-processes", "0"])
    return code, json.loads((out / "report.json").read_text(encoding="utf-8"))


def listed(path: Path) -> dict[str, set[str]]:
    """id -> codes, of dropped.jsonl or warnings.jsonl."""
    entries = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {entry["id"]: {reason["code"] for reason in entry["reasons"]} for entry in entries}


def kept(out: Path) -> list[str]:
    return [json.loads(line)["id"] for line in (out / "kept.jsonl").read_text(encoding="utf-8").splitlines()]


def codes_of(record: dict, folder: Path, *options: object) -> set[str]:
    """All problems of one clip, notes too."""
    manifest = write_lines(folder / "one.jsonl", [{"id": "clip", **record}])
    _, report = examine(manifest, *options, out=folder / "out")
    return {row["code"] for row in report["problems"]}

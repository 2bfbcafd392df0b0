"""What a model predicted, in a file and in a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.io import write_jsonl

Record = dict[str, Any]


def results(
    name: str, records: Sequence[Record], bad: Sequence[Record], scores: Mapping[str, float], output: Path
) -> str:
    """Write records to `output`, and what could not be used beside it; returns what to tell."""
    output.parent.mkdir(parents=True, exist_ok=True)
    write_jsonl(output, list(records))
    told = "  ".join(f"{metric} {value:.4g}" for metric, value in scores.items())
    lines = [f"{name}: {len(records)} predictions  {told}  -> {output}"]
    if bad:
        named = output.with_suffix(".bad.jsonl")
        write_jsonl(named, list(bad))
        lines.append(f"{name}: {len(bad)} bad samples left out, the first: {bad[0]['detail']}  -> {named}")
    return "\n".join(lines)

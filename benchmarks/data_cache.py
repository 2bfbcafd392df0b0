"""What the cache on disk saves: a pass that finds everything against one that makes everything.

`python -m benchmarks.data_cache MANIFEST ...`: for each collection the waveforms (what a training with augmentation
keeps) and two kinds of features; passes without a cache, filling it, and finding all (as the next run does),
interleaved. CPU time of one process with one thread; the files are in the system's file cache, so from a slow disk a
cache saves more.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from components.data import AudioDataset
from components.data.cache import ArrayCache
from components.features import KaldiFbank, LogMel

SAMPLE_RATE = 16_000
KEPT: dict[str, Callable[[], dict]] = {
    "waveforms": dict,
    "log-mel, 64": lambda: {"features": LogMel(SAMPLE_RATE)},
    "Kaldi fbank, 80": lambda: {"features": KaldiFbank(SAMPLE_RATE)},
}


def cpu_seconds(dataset: AudioDataset) -> float:
    """Of one pass."""
    started = time.process_time()
    for index in range(len(dataset)):
        dataset[index]
    return time.process_time() - started


def measure(manifest: str, kept: str, num_clips: int) -> dict[str, float]:
    """One round."""

    def dataset(cache: ArrayCache | None) -> AudioDataset:
        return AudioDataset(manifest, SAMPLE_RATE, max_samples=num_clips, cache=cache, **KEPT[kept]())

    with tempfile.TemporaryDirectory() as folder:
        without = cpu_seconds(dataset(None))
        first = cpu_seconds(dataset(filled := ArrayCache(folder, 2**32)))
        totals = filled.totals()
        second = cpu_seconds(dataset(found := ArrayCache(folder, 2**32)))
        assert (found.hits, found.misses) == (totals["entries"], 0)
    return {
        "milliseconds a clip": 1000 * without / found.hits,
        "first pass": first / without,
        "second pass": second / without,
        "kB a clip": totals["bytes"] / 1000 / found.hits,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("manifests", nargs="+", metavar="MANIFEST")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--num-clips", type=int, default=1000, help="the first so many")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/data_cache.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    rows: dict[str, dict[str, dict[str, list[float]]]] = {}
    for round_ in range(options.rounds + 1):
        for manifest in options.manifests:
            for kept in KEPT:
                found = measure(manifest, kept, options.num_clips)
                if round_:  # the first one loads libraries and fills the file cache
                    row = rows.setdefault(Path(manifest).parent.name, {}).setdefault(kept, {})
                    for name, value in found.items():
                        row.setdefault(name, []).append(value)
    medians = {
        corpus: {kept: {name: statistics.median(values) for name, values in row.items()} for kept, row in kinds.items()}
        for corpus, kinds in rows.items()
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(medians, indent=1))
    print(
        "| collection | kept | without, ms a clip | first pass | second pass | kB a clip |\n|---|---|---|---|---|---|"
    )
    for corpus, kinds in medians.items():
        for kept, row in kinds.items():
            ratios = f"{row['first pass']:.2f} | **{row['second pass']:.3f}**"
            print(f"| {corpus} | {kept} | {row['milliseconds a clip']:.2f} | {ratios} | {row['kB a clip']:.0f} |")


if __name__ == "__main__":
    main()

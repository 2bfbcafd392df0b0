"""What it costs to resume far into the data: `python -m benchmarks.cursor [--items 16000000] [--rounds 5]`.

The CPU time to the plan of a pass, which its order asks for whatever the place, and from there to the first batch.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

BATCH, CURSORS = 8, (10, 1_000_000)


class Numbers(Dataset):
    deterministic = True

    def __init__(self, num_items: int) -> None:
        self._num_items = num_items

    def __len__(self) -> int:
        return self._num_items

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor(index)


def measure(num_items: int, shuffle: bool, cursor: int) -> tuple[float, float]:
    """CPU seconds to the plan of a new pass, and from there to the first batch at `cursor`."""
    from trainer.data import PlannedLoader

    loader = PlannedLoader(DataLoader(Numbers(num_items), batch_size=BATCH, shuffle=shuffle), seed=0)
    started = time.process_time()
    loader.start(1, cursor)
    planned = time.process_time()
    next(iter(loader))
    return planned - started, time.process_time() - planned


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=16_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cursor.json"))
    options = parser.parse_args()
    if options.items < BATCH * (CURSORS[-1] + 1):
        parser.error(f"a cursor of {CURSORS[-1]:,} needs --items above {BATCH * CURSORS[-1]:,}")
    rows: list[dict[str, Any]] = []
    for shuffle in (False, True):
        times: dict[int, list[tuple[float, float]]] = {cursor: [] for cursor in CURSORS}
        for _ in range(options.rounds):
            for cursor in CURSORS:
                times[cursor].append(measure(options.items, shuffle, cursor))
        for cursor, rounds in times.items():
            plan, batch = (1000 * statistics.median(column) for column in zip(*rounds))
            order = "shuffled" if shuffle else "in a row"
            rows.append({"order": order, "cursor": cursor, "plan_ms": plan, "batch_ms": batch})
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"items": options.items, "batch": BATCH, "rows": rows}, indent=1))
    print(f"{options.items:,} items in batches of {BATCH}, medians of {options.rounds}\n")
    print("| order | batches taken before | plan of the pass, CPU ms | from there to the batch, CPU ms |")
    print("|---|---|---|---|")
    for row in rows:
        print(f"| {row['order']} | {row['cursor']:,} | {row['plan_ms']:.2f} | {row['batch_ms']:.2f} |")


if __name__ == "__main__":
    main()

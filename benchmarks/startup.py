"""`train.py` from its start to its first update, against importing what it needs. `python -m benchmarks.startup`.

Whole processes, interleaved, medians. The corpus must be there: run `python train.py experiment=tagging/debug` once.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from trainer import Callback

ROOT = Path(__file__).parents[1]
IMPORTS = "import torch, accelerate, hydra, omegaconf, torchaudio, soundfile"


class LeaveAtFirstUpdate(Callback):
    """Ends the process, all at once, when the first update is done."""

    def on_train_batch_end(self, trainer: Any, output: Any, batch: Any, batch_idx: int) -> None:
        os._exit(0)


def commands(exp_dir: str) -> dict[str, list[str]]:
    first_update = "+callbacks.leave={_target_: benchmarks.startup.LeaveAtFirstUpdate}"
    # torch 2.11 imports its compiler when an optimizer is built and stepped, whether or not anything is compiled.
    step = "torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))]).step()"
    return {
        "imports alone": [sys.executable, "-c", IMPORTS],
        "imports, and a step of AdamW": [
            sys.executable, "-c", f"{IMPORTS}; {step}",
        ],
        "train.py to its first update": [
            sys.executable, "train.py", "experiment=tagging/debug", f"exp_dir={exp_dir}", "overwrite=true",
            first_update,
        ],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/startup.json"))
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for round_ in range(options.rounds + 1):
            for name, command in commands(folder).items():
                started = time.perf_counter()
                subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
                if round_:  # the first one fills the file cache
                    seconds.setdefault(name, []).append(time.perf_counter() - started)
    base = seconds["imports alone"]
    rows = {
        name: {"seconds": statistics.median(taken), "ratio": statistics.median(t / b for t, b in zip(taken, base))}
        for name, taken in seconds.items()
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(rows, indent=1))
    print("| process | seconds | ratio |\n|---|---|---|")
    for name, row in rows.items():
        print(f"| {name} | {row['seconds']:.2f} | {row['ratio']:.2f} |")


if __name__ == "__main__":
    main()

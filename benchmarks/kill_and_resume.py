"""Does a killed run end with the same bits? `python -m benchmarks.kill_and_resume [--kills 20] [--out FILE.json]`.

A training in a process of its own gets SIGKILL at random moments, inside saves and set-up too, and is started again by
the same command with `auto_resume` until it is done. The whole last checkpoint and metrics.jsonl (without times) must
equal those of a run that nobody touched. Augmentation, dropout, EMA, schedule, best-k and validation are on.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

SETTINGS = [(workers, accumulation) for workers in (0, 2) for accumulation in (1, 4)]
EPOCHS, BATCHES, MILLISECONDS_PER_BATCH = 12, 24, 8


def train(exp_dir: Path, workers: int, accumulation: int) -> None:
    """The run: 12 epochs of 24 batches."""
    from torch import nn
    from torch.utils.data import DataLoader

    from tests.trainer.tiny import Vectors, VectorTrainer, linear, loader
    from trainer import Callback
    from trainer.callbacks import EarlyStopping, ExponentialMovingAverage, ModelCheckpoint, Throughput
    from utils.seed import seed_everything

    class TakeTime(Callback):
        """As much time outside of saves as a small step takes, for kills to fall there too."""

        def on_train_batch_start(self, trainer: Any, batch: Any, batch_idx: int) -> None:
            time.sleep(MILLISECONDS_PER_BATCH / 1000)

    torch.set_num_threads(1)
    seed_everything(0)
    VectorTrainer(
        nn.Sequential(nn.Linear(4, 256).double(), nn.ReLU(), nn.Dropout(0.2), nn.Linear(256, 4).double(), linear()),
        DataLoader(Vectors(BATCHES * 4 - 1, noise=0.3), batch_size=4, shuffle=True, num_workers=workers),
        partial(torch.optim.AdamW, lr=0.01), partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.02), None,
        loader(8, noise=0.1), exp_dir=exp_dir, seed=11, epochs=EPOCHS, log_every_n_steps=3, val_every_n_steps=5,
        gradient_accumulation_steps=accumulation, max_grad_norm=1.0, auto_resume=True,
        callbacks={
            "time": TakeTime(), "ema": ExponentialMovingAverage(0.9), "stop": EarlyStopping(patience=10**6),
            "throughput": Throughput(),
            "checkpoint": ModelCheckpoint(every_n_steps=2, keep_last=2, monitor="val/loss", keep_best=2),
        },
    ).fit()  # fmt: skip


def start(exp_dir: Path, workers: int, accumulation: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "benchmarks.kill_and_resume", "--train", str(exp_dir), str(workers),
               str(accumulation)]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes]) -> None:
    _, stderr = process.communicate()
    if process.returncode:
        raise SystemExit(f"the run failed by itself:\n{stderr.decode()}")


def killed_run(exp_dir: Path, workers: int, accumulation: int, num_kills: int, seed: int) -> dict[str, Any]:
    """Kill `num_kills` times: a tenth while it starts, a third while a checkpoint is written, else at any time."""
    rng = random.Random(seed)
    moments: list[int] = []
    in_save = 0
    while len(moments) < num_kills:
        process = start(exp_dir, workers, accumulation)
        draw = rng.random()
        if draw > 0.1:
            before = len(log_of(exp_dir))
            while len(log_of(exp_dir)) <= before and process.poll() is None:
                time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.9))
        if draw > 0.67:
            while not is_saving(exp_dir) and process.poll() is None:
                time.sleep(0.0002)
        if process.poll() is not None:  # done: the kill comes too late
            finish(process)
            break
        process.kill()
        process.communicate()
        moments.append(len(log_of(exp_dir)))
        in_save += is_saving(exp_dir)
    finish(start(exp_dir, workers, accumulation))
    return {"kills": len(moments), "inside_a_save": in_save}


def is_saving(exp_dir: Path) -> bool:
    return any((exp_dir / "checkpoints").glob(".step_*.partial"))


def log_of(exp_dir: Path) -> list[str]:
    path = exp_dir / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def differences(one: Path, other: Path) -> list[str]:
    """What is not bit-identical at the end of two runs; empty where all is."""
    from trainer.checkpoint import latest, load

    found = []
    loaded = []
    for exp_dir in (one, other):
        folder = latest(exp_dir / "checkpoints")
        if folder is None:
            return ["no checkpoint"]
        loaded.append(load(folder))
    a, b = loaded
    for what in ("weights", "training", "rank"):
        found += [f"{what}{path}" for path in _unequal(getattr(a, what), getattr(b, what))]
    if [_timeless(line) for line in log_of(one)] != [_timeless(line) for line in log_of(other)]:
        found.append("metrics.jsonl")
    return found


def _unequal(a: Any, b: Any, path: str = "") -> list[str]:
    if isinstance(a, torch.Tensor):
        return [] if isinstance(b, torch.Tensor) and torch.equal(a, b) else [path]
    if isinstance(a, dict):
        if not isinstance(b, dict) or a.keys() != b.keys():
            return [path]
        return [p for key in a if not str(key).startswith("perf/") for p in _unequal(a[key], b[key], f"{path}.{key}")]
    if isinstance(a, (list, tuple)):
        if not isinstance(b, (list, tuple)) or len(a) != len(b):
            return [path]
        return [p for i, (x, y) in enumerate(zip(a, b)) for p in _unequal(x, y, f"{path}[{i}]")]
    return [] if a == b else [path]


def _timeless(line: str) -> dict[str, Any]:
    return {k: v for k, v in json.loads(line).items() if k != "time" and not k.startswith("perf/")}


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| workers | accumulation | kills | inside a save | bit-identical |", "|---" * 5 + "|"]
    for r in rows:
        same = "yes" if not r["differences"] else f"no: {', '.join(r['differences'][:3])}"
        lines.append(f"| {r['workers']} | {r['accumulation']} | {r['kills']} | {r['inside_a_save']} | {same} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="over all settings together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/kill_and_resume.json"))
    parser.add_argument("--train", nargs=3, metavar=("EXP_DIR", "WORKERS", "ACCUMULATION"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        train(Path(options.train[0]), int(options.train[1]), int(options.train[2]))
        return
    rows = []
    for number, (workers, accumulation) in enumerate(SETTINGS):
        share = options.kills // len(SETTINGS) + (number < options.kills % len(SETTINGS))
        with tempfile.TemporaryDirectory() as folder:
            whole, killed = Path(folder, "whole"), Path(folder, "killed")
            finish(start(whole, workers, accumulation))
            row = killed_run(killed, workers, accumulation, share, options.seed + number)
            rows.append({"workers": workers, "accumulation": accumulation, **row,
                         "differences": differences(whole, killed)})  # fmt: skip
        print(table(rows[-1:]).splitlines()[-1], flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"torch": torch.__version__, "kills": options.kills, "rows": rows}, indent=1))
    print(table(rows))
    if any(row["differences"] for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()

"""Does a killed run end with the same bits? `python -m benchmarks.kill_and_resume [--kills 20] [--out FILE.json]`.

A training in processes of its own gets SIGKILL at random moments, inside saves and set-up too, and is started again by
the same command with `auto_resume` until it is done. The whole last checkpoint and metrics.jsonl (without times) must
equal those of a run that nobody touched. Augmentation, dropout, EMA, best-k, early stopping and validation are on; the
settings cover workers, accumulation, processes, the kinds of schedule and the ways to an order of data.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset, WeightedRandomSampler, get_worker_info

EPOCHS, BATCHES, MILLISECONDS_PER_BATCH = 16, 24, 8


@dataclass(frozen=True)
class Setting:
    """One run: schedules go by "step", "epoch" or "metric"; data are "shuffled", "bucketed", "weighted", a "stream"."""

    processes: int
    workers: int
    accumulation: int
    schedule: str
    data: str


SETTINGS = [
    Setting(1, 0, 1, "step", "shuffled"),
    Setting(1, 0, 4, "epoch", "bucketed"),
    Setting(1, 2, 1, "metric", "weighted"),
    Setting(1, 2, 4, "step", "stream"),
    Setting(2, 0, 1, "metric", "bucketed"),
    Setting(2, 0, 4, "step", "weighted"),
    Setting(2, 2, 1, "epoch", "shuffled"),
    Setting(2, 2, 4, "metric", "stream"),
]


# ------------------------------------------------------------------------------------------------------------- the run


class Buckets:
    """Batches of items whose first numbers are alike, as of clips whose lengths are; another draw in each pass."""

    def __init__(self, values: torch.Tensor) -> None:
        self._values = values

    def __len__(self) -> int:
        return -(-len(self._values) // 4)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches(0))

    def batches(self, pass_number: int) -> list[list[int]]:
        order = (self._values + 0.1 * torch.randn(len(self._values))).argsort()
        batches = [piece.tolist() for piece in order.split(4)]
        return [batches[i] for i in torch.randperm(len(batches)).tolist()]


class Stream(IterableDataset):
    """Items in a row, of which each worker reads its share."""

    def __init__(self, items: Any) -> None:
        self._items = items

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for index in range(first, len(self._items), step):
            yield self._items[index]


def make_loader(setting: Setting) -> DataLoader:
    from tests.trainer.tiny import Vectors

    items = Vectors(BATCHES * 4 * setting.processes - 1, noise=0.3)
    load = partial(DataLoader, num_workers=setting.workers)
    if setting.data == "bucketed":
        return load(items, batch_sampler=Buckets(items.x[:, 0]))
    if setting.data == "weighted":
        corpora = ConcatDataset([items, Vectors(20, noise=0.3)])
        weights = [1.0] * len(items) + [3.0] * 20
        return load(corpora, batch_size=4, sampler=WeightedRandomSampler(weights, len(items)))
    if setting.data == "stream":
        return load(Stream(items), batch_size=4)
    return load(items, batch_size=4, shuffle=True)


def make_schedule(setting: Setting) -> Any:
    schedules = torch.optim.lr_scheduler
    if setting.schedule == "epoch":
        return partial(schedules.StepLR, step_size=3, gamma=0.7)
    if setting.schedule == "metric":
        return partial(schedules.ReduceLROnPlateau, patience=1, factor=0.8)
    return partial(schedules.OneCycleLR, max_lr=0.02)


def train(exp_dir: Path, setting: Setting) -> None:
    """The run of a setting; some hundred batches."""
    from tests.trainer.tiny import VectorTrainer, linear, loader
    from trainer import Callback
    from trainer.callbacks import EarlyStopping, ExponentialMovingAverage, ModelCheckpoint, Throughput
    from utils.launch import end_together
    from utils.seed import seed_everything

    class TakeTime(Callback):
        """As much time outside of saves as a small step takes, for kills to fall there too."""

        def on_train_batch_start(self, trainer: Any, batch: Any, batch_idx: int) -> None:
            time.sleep(MILLISECONDS_PER_BATCH / 1000)

    torch.set_num_threads(1)
    seed_everything(0)
    # The length of a stream is known to nobody but us.
    known = {"max_steps": EPOCHS * BATCHES // setting.accumulation} if setting.data == "stream" else {}
    VectorTrainer(
        nn.Sequential(nn.Linear(4, 256).double(), nn.ReLU(), nn.Dropout(0.2), nn.Linear(256, 4).double(), linear()),
        make_loader(setting), partial(torch.optim.AdamW, lr=0.01), make_schedule(setting), None, loader(8, noise=0.1),
        exp_dir=exp_dir, seed=11, epochs=EPOCHS, log_every_n_steps=3, val_every_n_steps=5, max_grad_norm=1.0,
        gradient_accumulation_steps=setting.accumulation, auto_resume=True, max_loss_ratio=1e6,
        lr_scheduler_interval="epoch" if setting.schedule == "epoch" else "step", **known,
        callbacks={
            "time": TakeTime(), "ema": ExponentialMovingAverage(0.9), "stop": EarlyStopping(patience=10**6),
            "throughput": Throughput(),
            "checkpoint": ModelCheckpoint(every_n_steps=2, keep_last=2, monitor="val/loss", keep_best=2),
        },
    ).fit()  # fmt: skip
    end_together()


# ----------------------------------------------------------------------------------------------------------- the kills


class Job:
    """The processes of a run, as torchrun would start them, each with its data workers in a session of its own."""

    def __init__(self, exp_dir: Path, setting: Setting) -> None:
        command = [sys.executable, "-m", "benchmarks.kill_and_resume", "--train", str(exp_dir),
                   json.dumps(asdict(setting))]  # fmt: skip
        environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
        if setting.processes > 1:
            world = str(setting.processes)
            environment |= {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1",
                            "MASTER_PORT": str(_free_port())}  # fmt: skip
        self._errors = [exp_dir.with_name(f"{exp_dir.name}_rank_{rank}.txt") for rank in range(setting.processes)]
        self._processes = []
        for rank, path in enumerate(self._errors):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if setting.processes > 1 else {}
            with path.open("w") as file:
                self._processes.append(
                    subprocess.Popen(command, env=environment | own, stdout=subprocess.DEVNULL, stderr=file,
                                     start_new_session=True)
                )  # fmt: skip

    @property
    def is_running(self) -> bool:
        return all(process.poll() is None for process in self._processes)

    def kill(self, with_workers: bool) -> None:
        for process in self._processes:
            if with_workers:
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
        for process in self._processes:
            process.wait()

    def finish(self) -> None:
        """Wait for the end.

        Raises:
            SystemExit: a process failed by itself.
        """
        codes = [process.wait() for process in self._processes]
        if any(codes):
            raise SystemExit("the run failed by itself:\n" + "\n".join(path.read_text() for path in self._errors))


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def killed_run(exp_dir: Path, setting: Setting, num_kills: int, seed: int) -> dict[str, Any]:
    """Kill `num_kills` times: a tenth while it starts, a third while a checkpoint is written, else at any time."""
    rng = random.Random(seed)
    num_killed = in_save = 0
    while num_killed < num_kills:
        job = Job(exp_dir, setting)
        draw = rng.random()
        if draw < 0.1:
            time.sleep(rng.uniform(0, 6))
        else:
            before = len(log_of(exp_dir))
            while len(log_of(exp_dir)) <= before and job.is_running:
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.6))
        if draw > 0.67:
            while not is_saving(exp_dir) and job.is_running:
                time.sleep(0.0002)
        if not job.is_running:  # done: the kill comes too late
            job.finish()
            break
        job.kill(with_workers=rng.random() < 0.5)
        num_killed += 1
        in_save += is_saving(exp_dir)
    Job(exp_dir, setting).finish()
    return {"kills": num_killed, "inside_a_save": in_save}


def is_saving(exp_dir: Path) -> bool:
    return any((exp_dir / "checkpoints").glob(".step_*.partial"))


def log_of(exp_dir: Path) -> list[str]:
    path = exp_dir / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def differences(one: Path, other: Path) -> list[str]:
    """What is not bit-identical at the end of two runs; empty where all is."""
    from trainer.checkpoint import latest, load, load_rank

    folders = [latest(exp_dir / "checkpoints") for exp_dir in (one, other)]
    if folders[0] is None or folders[1] is None:
        return ["no checkpoint"]
    a, b = load(folders[0]), load(folders[1])
    found = [f"weights{path}" for path in _unequal(a.weights, b.weights)]
    found += [f"training{path}" for path in _unequal(a.training, b.training)]
    for rank in range(a.training["num_processes"]):
        ranks = [load_rank(folder, rank) for folder in folders if folder is not None]
        found += [f"rank {rank}{path}" for path in _unequal(*ranks)]
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
    names = ("processes", "workers", "accumulation", "schedule", "data", "kills", "inside_a_save")
    lines = [
        f"| {' | '.join(name.replace('_', ' ') for name in names)} | bit-identical |",
        "|---" * (len(names) + 1) + "|",
    ]
    for row in rows:
        same = "yes" if not row["differences"] else f"no: {', '.join(row['differences'][:3])}"
        lines.append(f"| {' | '.join(str(row[name]) for name in names)} | {same} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="over all settings together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/kill_and_resume.json"))
    parser.add_argument("--train", nargs=2, metavar=("EXP_DIR", "SETTING"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        train(Path(options.train[0]), Setting(**json.loads(options.train[1])))
        return
    rows = []
    for number, setting in enumerate(SETTINGS):
        share = options.kills // len(SETTINGS) + (number < options.kills % len(SETTINGS))
        with tempfile.TemporaryDirectory() as folder:
            whole, killed = Path(folder, "whole"), Path(folder, "killed")
            Job(whole, setting).finish()
            row = killed_run(killed, setting, share, options.seed + number)
            rows.append({**asdict(setting), **row, "differences": differences(whole, killed)})
        print(table(rows[-1:]).splitlines()[-1], flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"torch": torch.__version__, "kills": options.kills, "rows": rows}, indent=1))
    print(table(rows))
    if any(row["differences"] for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()

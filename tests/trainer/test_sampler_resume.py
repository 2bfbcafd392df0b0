"""Kill, resume, and other numbers of ranks, with samplers that plan batches."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from components.data.collate import PadCollate
from components.data.concat import ConcatDataset
from components.data.loader import make_dataloader
from components.data.samplers import Budget, ClassBalancedBatchSampler, DynamicBatchSampler, MixtureBatchSampler
from trainer import Callback, StepOutput, Trainer
from trainer.callbacks import ModelCheckpoint
from trainer.checkpoint import latest, read_weights
from trainer.data import PlannedLoader

ROOT = Path(__file__).parents[2]
NUM_FEATURES = 4


class Ragged(Dataset):
    """Sequences of 3 to 40 frames under augmentation, of two classes."""

    def __init__(self, num_items: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.frames = torch.randint(3, 41, (num_items,), generator=generator).tolist()
        self.x = [torch.randn(n, NUM_FEATURES, generator=generator) for n in self.frames]
        self.records = [
            {"id": f"{seed}-{i}", "duration": n / 10, "labels": {"kind": "rare" if i % 7 == 0 else "common"}}
            for i, n in enumerate(self.frames)
        ]

    @property
    def durations(self) -> list[float]:
        return [record["duration"] for record in self.records]

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"id": self.records[index]["id"], "features": self.x[index] + 0.3 * torch.randn(NUM_FEATURES)}


class FeatureTrainer(Trainer):
    """A loss over frames, of any batch with features."""

    def training_step(self, batch: Any, batch_idx: int) -> StepOutput:
        features = batch["features"] if "features" in batch else batch["inputs"]
        lens = batch["feature_lens"] if "features" in batch else batch["supervisions"]["num_frames"]
        mask = torch.arange(features.shape[1]) < lens.unsqueeze(1)
        error = (self.model(features).squeeze(-1) - features[..., 0].sin()) * mask
        return StepOutput(error.square().sum(), int(mask.sum()))


class PullThePlug(Callback):
    def __init__(self, at: int) -> None:
        self.at = at

    def on_train_batch_start(self, trainer, batch, batch_idx):
        if trainer.global_step == self.at:
            raise KeyboardInterrupt


class Remember(Callback):
    """What the run was given: names, and a digest of the numbers."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, Any, float]] = []

    def on_train_batch_start(self, trainer, batch, batch_idx):
        names = batch["id"] if "id" in batch else batch["supervisions"]["text"]
        values = batch["features"] if "features" in batch else batch["inputs"]
        self.seen.append((trainer.global_step, list(names), float(values.double().abs().sum())))


def run(loader: DataLoader, exp_dir: Path, *more: Callback, num_features: int = NUM_FEATURES, **options: Any):
    torch.manual_seed(0)
    remember = Remember()
    trainer = FeatureTrainer(
        nn.Linear(num_features, 1), loader, partial(torch.optim.AdamW, lr=0.01), exp_dir=exp_dir, seed=3,
        callbacks=[remember, ModelCheckpoint(every_n_steps=3), *more], **({"epochs": 3} | options),
    )  # fmt: skip
    with contextlib.suppress(KeyboardInterrupt):
        trainer.fit()
    return remember.seen, trainer


def parts() -> ConcatDataset:
    return ConcatDataset({"a": Ragged(40, 1), "b": Ragged(25, 2), "c": Ragged(6, 3)})


BUDGET = Budget(max_seconds=16)
SAMPLERS = {
    "dynamic": (lambda: Ragged(60), partial(DynamicBatchSampler, max_seconds=16)),
    "buckets": (lambda: Ragged(60), partial(DynamicBatchSampler, max_seconds=16, num_buckets=3)),
    "mixture": (parts, partial(MixtureBatchSampler, budget=BUDGET, weights={"a": 1, "b": 1, "c": 1}, num_items=50)),
    "mixed": (parts, partial(MixtureBatchSampler, budget=BUDGET, weights={"a": 1, "b": 1, "c": 1}, mode="sample",
                             until="longest")),
    "tasks": (parts, partial(MixtureBatchSampler, budget=BUDGET, tasks={"one": ["a", "c"], "two": ["b"]},
                             consecutive=2)),
    "classes": (lambda: Ragged(60), partial(ClassBalancedBatchSampler, label="kind", budget=BUDGET, num_items=40)),
}  # fmt: skip


def make(name: str, workers: int = 0) -> DataLoader:
    dataset, sampler = SAMPLERS[name]
    return make_dataloader(dataset(), sampler, num_workers=workers, collate_fn=PadCollate())


def assert_resumes(make_loader, folder: Path, kills: tuple[int, ...], **options: Any) -> None:
    whole, uninterrupted = run(make_loader(), folder / "whole", **options)
    assert uninterrupted.global_step > max(kills)
    seen = {}
    for kill_at in (*kills, -1):
        part, trainer = run(make_loader(), folder / "killed", PullThePlug(kill_at), auto_resume=True, **options)
        seen |= {step: (names, digest) for step, names, digest in part}
    assert trainer.global_step == uninterrupted.global_step
    assert seen == {step: (names, digest) for step, names, digest in whole}
    weights = [
        read_weights(latest(folder / name / "checkpoints") / "model.safetensors") for name in ("whole", "killed")
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_killed_run_ends_bit_identical(name, tmp_path):
    assert_resumes(lambda: make(name), tmp_path, kills=(5, 13))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dynamic", "mixture"])
def test_workers_change_nothing(name, tmp_path):
    alone, _ = run(make(name), tmp_path / "alone")
    workers, _ = run(make(name, workers=2), tmp_path / "workers")
    assert alone == workers
    assert_resumes(lambda: make(name, workers=2), tmp_path, kills=(7,))


@pytest.mark.parametrize("name", SAMPLERS)
def test_ranks_share_the_same_global_batches(name):
    """What a rank reads at step s of two is batch 2 s + rank of one: so a run goes on with other ranks."""

    def walk(rank: int, world_size: int, number: int) -> list[Any]:
        planned = PlannedLoader(make(name), seed=3, rank=rank, world_size=world_size)
        planned.start(number)
        batches = [loaded.batch for loaded in planned]
        return [(batch["id"], batch["features"].sum().item()) for batch in batches]

    for number in (0, 2):
        alone, first, second = walk(0, 1, number), walk(0, 2, number), walk(1, 2, number)
        assert len(first) == len(second)
        together = [batch for step in zip(first, second) for batch in step]
        even = len(alone) // 2 * 2
        assert together[:even] == alone[:even]
        names = [sorted(name for ids, _ in walked for name in ids) for walked in (together, alone)]
        assert names[0] == names[1]


ELASTIC = ("dynamic", "mixture", "tasks", "classes")


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory) -> Path:
    """Runs of two real processes, killed at update 6 behind a checkpoint at 3 and at 6."""
    folder = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [*command, "-m", "tests.trainer.sampler_run", str(folder), *ELASTIC],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ELASTIC)
def test_a_run_of_two_ranks_goes_on_with_one(name, two_ranks, tmp_path):
    """One process with two batches to an update sees, update by update, what two ranks with one each see."""
    ranks = json.loads((two_ranks / f"{name}.json").read_text())
    assert len(ranks) == 2
    options = {"gradient_accumulation_steps": 2, "log_every_n_steps": 4}
    whole, uninterrupted = run(make(name), tmp_path / "whole", **options)
    rest, resumed = run(make(name), two_ranks / name, auto_resume=True, **options)
    assert min(step for step, _, _ in rest) == 6
    seen: dict[int, list] = {}
    for step, names, digest in (*(batch for rank in ranks for batch in rank if batch[0] < 6), *rest):
        seen.setdefault(step, []).append([names, digest])
    expected: dict[int, list] = {}
    for step, names, digest in whole:
        expected.setdefault(step, []).append([names, digest])
    assert seen.keys() == expected.keys()
    # A last batch without a partner is dealt out to both ranks.
    assert all(sorted(seen[step]) == sorted(expected[step]) for step in seen if len(expected[step]) == 2)
    assert resumed.global_step == uninterrupted.global_step
    weights = [trainer.unwrapped_model.weight for trainer in (uninterrupted, resumed)]
    assert torch.allclose(*weights, atol=1e-5)


def test_metrics_say_what_became_of_the_budget(tmp_path):
    """`perf/padding` of a run with dynamic batches."""
    from trainer.callbacks import Padding

    padding = Padding("feature_lens", "features", dim=1, size_name="frames")
    run(make("dynamic"), tmp_path, padding, log_every_n_steps=5, epochs=1)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    values = [line["perf/padding"] for line in lines if "perf/padding" in line]
    assert values
    assert all(0 <= value < 0.25 for value in values)

"""How long a save keeps the training waiting. `python -m benchmarks.checkpoint_stall [--rounds 5] [--out FILE.json]`.

A model of 50 M parameters with AdamW, in one process; contestants interleaved round by round in changing order. The
stall is the time in which the thread that trains does nothing else; beside it, what the steps behind an asynchronous
save cost more than usual, and the first save, which allocates the buffers.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainer import Trainer
from trainer.callbacks import ModelCheckpoint

WIDTH, DEPTH = 1024, 48  # 48 x 1024 x 1025: 50.4 M parameters
STEPS_BEHIND = 60


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(DEPTH))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return x


class StallTrainer(Trainer):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.model(batch).square().mean()


def trained(exp_dir: Path) -> StallTrainer:
    """A Trainer whose optimizer has its state."""
    torch.manual_seed(0)
    trainer = StallTrainer(
        Residual(), [torch.randn(8, WIDTH)], partial(torch.optim.AdamW, lr=1e-5), exp_dir=exp_dir, max_steps=1,
        callbacks={"checkpoint": ModelCheckpoint(every_n_epochs=None, keep_last=1)},
    )  # fmt: skip
    trainer.fit()
    return trainer


def timed(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def contestants(trainer: StallTrainer, folder: Path) -> dict[str, Callable[[], object]]:
    accelerator = trainer.accelerator
    accelerator._models, accelerator._optimizers = [trainer.model], [trainer.units["model"].optimizer]
    return {
        "accelerator.save_state": lambda: accelerator.save_state(str(folder / "accelerate")),
        "ours, synchronous": trainer.save_checkpoint,
        "ours, asynchronous": lambda: trainer.save_checkpoint(asynchronous=True),
    }


def measure(rounds: int, folder: Path) -> dict[str, Any]:
    trainer = trained(folder / "run")
    batch = torch.randn(8, WIDTH, device=trainer.device)

    def step() -> None:
        trainer.model(batch).square().mean().backward()
        trainer.model.zero_grad()

    usual = statistics.median(timed(step) for _ in range(20))
    saves = contestants(trainer, folder)
    first = timed(saves["ours, asynchronous"])
    trainer.finish_saving()
    stalls: dict[str, list[float]] = {name: [] for name in saves}
    behind, slowdown = [], []
    for round_ in range(rounds):
        for name in saves if round_ % 2 else reversed(saves):
            stalls[name].append(timed(saves[name]))
            if name == "ours, asynchronous":
                started, steps = time.perf_counter(), []
                while trainer._writer.is_busy:
                    steps.append(timed(step))
                behind.append(time.perf_counter() - started)
                slowdown.append(statistics.mean(steps) / usual)
            trainer.finish_saving()
    base = stalls["ours, synchronous"]
    return {
        "parameters": sum(p.numel() for p in trainer.model.parameters()), "device": str(trainer.device),
        "torch": torch.__version__, "first_asynchronous_s": first, "written_behind_s": statistics.median(behind),
        "step_slowdown_behind": statistics.median(slowdown),
        "rows": [
            {"contestant": name, "stall_s": statistics.median(times), "range_s": [min(times), max(times)],
             "ratio": statistics.median(t / b for t, b in zip(times, base))}
            for name, times in stalls.items()
        ],
    }  # fmt: skip


def table(result: dict[str, Any]) -> str:
    lines = ["| contestant | stall s (range) | of the synchronous save |", "|---" * 3 + "|"]
    for row in result["rows"]:
        low, high = row["range_s"]
        lines.append(f"| {row['contestant']} | {row['stall_s']:.3f} ({low:.3f}-{high:.3f}) | **{row['ratio']:.1%}** |")
    lines += [
        "",
        f"{result['parameters'] / 1e6:.1f} M parameters, {result['device']}. The first asynchronous save allocates: "
        f"{result['first_asynchronous_s']:.3f} s. Behind the training it takes {result['written_behind_s']:.2f} s, in "
        f"which a step takes {result['step_slowdown_behind']:.2f} times as long as alone.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/checkpoint_stall.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(options.rounds, Path(folder))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result | {"rounds": options.rounds}, indent=1))
    print(table(result))


if __name__ == "__main__":
    main()

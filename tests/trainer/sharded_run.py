"""FSDP 2 on two CPU processes: a whole run, and one that is stopped and resumed. `... sharded_run FOLDER`.

accelerate gives FSDP to accelerators only and passes over its settings on CPUs; torch itself shards there as well, so
the type is set by hand.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import accelerate
import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import nn

import trainer.trainer
from tests.trainer.tiny import VectorTrainer, loader
from trainer import StepOutput
from trainer.accelerator import make_accelerator
from trainer.callbacks import ModelCheckpoint
from utils.launch import end_together


def make_sharding_accelerator(*arguments: Any) -> accelerate.Accelerator:
    accelerator = make_accelerator(*arguments)
    for state in (PartialState, AcceleratorState):
        state._shared_state["distributed_type"] = DistributedType.FSDP
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="size_based_wrap", min_num_params=1, state_dict_type="FULL_STATE_DICT"
    )
    return accelerator


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.tanh(self.a(x)))


class FloatTrainer(VectorTrainer):
    def training_step(self, batch: Any, batch_idx: int) -> StepOutput:
        return super().training_step({"x": batch["x"].float(), "y": batch["y"].float()}, batch_idx)


def run(exp_dir: Path, epochs: int) -> dict[str, Any]:
    torch.manual_seed(0)
    model = Net()
    fit = FloatTrainer(
        model, loader(33, 4, shuffle=True), partial(torch.optim.AdamW, lr=0.05), None, None, loader(9),
        callbacks=[ModelCheckpoint()], exp_dir=exp_dir, auto_resume=True, epochs=epochs, max_grad_norm=1.0,
    )  # fmt: skip
    fit.fit()
    return {"val/loss": fit.metrics["val/loss"], "parameter": type(next(model.parameters())).__name__}


def main() -> None:
    folder = Path(sys.argv[1])
    trainer.trainer.make_accelerator = make_sharding_accelerator
    results = {"whole": run(folder / "whole", 4), "part": run(folder / "parts", 2), "resumed": run(folder / "parts", 4)}
    state = PartialState()
    if state.is_main_process:
        (folder / "out.json").write_text(json.dumps(results | {"num_processes": state.num_processes}))
    end_together()


if __name__ == "__main__":
    main()

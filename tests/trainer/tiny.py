"""The smallest things a Trainer can be shown with: a linear model on vectors, float64 so that sums compare exactly."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from trainer import StepOutput, Trainer

SGD = partial(torch.optim.SGD, lr=0.05)


class Vectors(Dataset):
    """Item i is a fixed vector with a target; `noise` adds what is drawn at random from torch, numpy and random."""

    def __init__(self, num_items: int = 32, noise: float = 0.0) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(num_items, 4, generator=generator, dtype=torch.float64)
        self.y = self.x.sum(1, keepdim=True)
        self.noise = noise
        self.deterministic = noise == 0.0

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Any]:
        x = self.x[index]
        if self.noise:
            import random

            import numpy as np

            x = x + self.noise * (torch.randn(4).double() + float(np.random.rand()) + random.random())
        return {"x": x, "y": self.y[index], "index": index}


def loader(num_items: int = 32, batch_size: int = 4, noise: float = 0.0, **settings: Any) -> DataLoader:
    return DataLoader(Vectors(num_items, noise), batch_size=batch_size, **settings)


def linear(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Linear(4, 1).double()


class VectorTrainer(Trainer):
    """Squared error, as a sum and a count."""

    def training_step(self, batch: Any, batch_idx: int) -> StepOutput:
        error = self.model(batch["x"]) - batch["y"]
        return StepOutput(error.square().sum(), error.numel(), {"mae": (error.abs().sum(), error.numel())})

    def validation_step(self, batch: Any, batch_idx: int) -> StepOutput:
        return self.training_step(batch, batch_idx)

    def predict_step(self, batch: Any, batch_idx: int) -> list[int]:
        return batch["index"].tolist()


class MeanTrainer(VectorTrainer):
    """Squared error, as a mean."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:  # type: ignore[override]
        return (self.model(batch["x"]) - batch["y"]).square().mean()

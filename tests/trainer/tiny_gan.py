"""Two optimizers that take turns: the smallest adversarial training."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from trainer import StepOutput, Trainer


class Noise(Dataset):
    """Pairs of a latent and a real sample from N(3, 0.5)."""

    deterministic = True

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(index)
        latent = torch.randn(1, generator=generator, dtype=torch.float64)
        return {"latent": latent, "real": 3 + 0.5 * torch.randn(1, generator=generator, dtype=torch.float64)}


class Gan(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Linear(1, 1).double()
        self.discriminator = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1)).double()


class GanTrainer(Trainer):
    """Least-squares GAN (Mao et al. 2017): the discriminator's update comes before the generator's loss is computed."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        generator, discriminator = self.unwrapped_model.generator, self.unwrapped_model.discriminator
        fake, num_items = generator(batch["latent"]), len(batch["latent"])
        errors = (discriminator(batch["real"]) - 1).square() + discriminator(fake.detach()).square()
        yield "discriminator", StepOutput(errors.sum(), num_items)
        yield "generator", StepOutput((discriminator(fake) - 1).square().sum(), num_items)


def gan(epochs: int = 1, batch_size: int = 16, **options: Any) -> tuple[Gan, GanTrainer]:
    torch.manual_seed(0)
    model = Gan()
    adam = partial(torch.optim.Adam, lr=0.02, betas=(0.5, 0.9))
    optimizers = {"discriminator": adam, "generator": adam}
    return model, GanTrainer(model, DataLoader(Noise(), batch_size, shuffle=True), optimizers, epochs=epochs, **options)

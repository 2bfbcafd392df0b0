"""What a generator and discriminators hold against each other.

Shapes: B batch, C channels, L frames, N bins.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from components.features.framing import behind_clips


@dataclass(slots=True)
class Judgement:
    """What one discriminator says.

    Attributes:
        logits: `[B, L, N]`, large where it takes what it hears for real.
        features: what each of its layers saw, `[B, C, L, N]`, zero behind each clip.
        lens: `[B]`, frames of each clip.
    """

    logits: Tensor
    features: list[Tensor]
    lens: Tensor


class AdversarialLoss(ABC):
    """A loss per clip, `[B]`: the mean over its frames and bins, averaged over discriminators."""

    def discriminator(self, real: Sequence[Judgement], fake: Sequence[Judgement]) -> Tensor:
        """What the discriminators are to lessen; `fake` is judged without gradients to the generator."""
        of_real = [_mean(self.of_real(judged.logits), judged.lens) for judged in real]
        of_fake = [_mean(self.of_fake(judged.logits), judged.lens) for judged in fake]
        return (torch.stack(of_real) + torch.stack(of_fake)).mean(0)

    def generator(self, fake: Sequence[Judgement]) -> Tensor:
        """What the generator is to lessen."""
        return torch.stack([_mean(self.of_generator(judged.logits), judged.lens) for judged in fake]).mean(0)

    @abstractmethod
    def of_real(self, logits: Tensor) -> Tensor:
        """The discriminator's loss of real sounds, elementwise."""

    @abstractmethod
    def of_fake(self, logits: Tensor) -> Tensor:
        """The discriminator's loss of generated sounds, elementwise."""

    @abstractmethod
    def of_generator(self, logits: Tensor) -> Tensor:
        """The generator's loss, elementwise."""


class HingeLoss(AdversarialLoss):
    """`max(0, 1 - D(x)) + max(0, 1 + D(G))` against `max(0, 1 - D(G))` (Défossez et al. 2022, arXiv:2210.13438)."""

    def of_real(self, logits: Tensor) -> Tensor:
        return torch.relu(1 - logits)

    def of_fake(self, logits: Tensor) -> Tensor:
        return torch.relu(1 + logits)

    def of_generator(self, logits: Tensor) -> Tensor:
        return torch.relu(1 - logits)


class LeastSquaresLoss(AdversarialLoss):
    """`(D(x) - 1)^2 + D(G)^2` against `(D(G) - 1)^2` (Mao et al. 2017, arXiv:1611.04076)."""

    def of_real(self, logits: Tensor) -> Tensor:
        return (logits - 1).square()

    def of_fake(self, logits: Tensor) -> Tensor:
        return logits.square()

    def of_generator(self, logits: Tensor) -> Tensor:
        return (logits - 1).square()


def feature_matching(real: Sequence[Judgement], fake: Sequence[Judgement]) -> Tensor:
    """How differently discriminators see real and generated clips, `[B]`.

    The mean absolute difference of each layer in units of the mean of the real one, averaged over layers and
    discriminators (Défossez et al. 2022, arXiv:2210.13438, eq. 2; there the unit is the batch's, here each clip's).
    """
    losses = []
    for of_real, of_fake in zip(real, fake):
        for seen, made in zip(of_real.features, of_fake.features):
            seen = seen.detach()
            losses.append((seen - made).abs().sum((1, 2, 3)) / seen.abs().sum((1, 2, 3)).clamp(min=1e-5))
    return torch.stack(losses).mean(0)


def _mean(values: Tensor, lens: Tensor) -> Tensor:
    inside = values.float().masked_fill(behind_clips(values, lens), 0)
    return inside.sum((1, 2)) / (lens.clamp(min=1) * values.shape[2])

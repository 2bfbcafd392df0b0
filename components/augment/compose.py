"""Augmentations of augmentations: several in a row, or one of several."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from components.augment.draws import check_probability, happens
from components.augment.keyed import stream
from utils.errors import UserError

Step = Callable[[Tensor, int], Tensor]
Steps = Mapping[str, Step | None] | Sequence[Step | None]


def _named(steps: Steps) -> dict[str, Step]:
    """Steps by name; what is null is left out."""
    if not isinstance(steps, Mapping):
        steps = {str(position): step for position, step in enumerate(steps)}
    return {name: step for name, step in steps.items() if step is not None}


class Compose:
    """Waveform augmentations one after the other, all or none.

    Args:
        steps: name -> `(waveform [C, T], sample_rate) -> waveform [C, T']`, or a list of these; null removes one.
        p: probability of applying them.
    """

    def __init__(self, steps: Steps, p: float = 1.0) -> None:
        self.steps, self.p = _named(steps), check_probability(p, "Compose")

    def __call__(self, waveform: Tensor, sample_rate: int) -> Tensor:
        if happens(self.p):
            for step in self.steps.values():
                waveform = step(waveform, sample_rate)
        return waveform


class OneOf:
    """One waveform augmentation drawn from several.

    Args:
        steps: as in `Compose`.
        weights: name -> how likely it is, relative to the others; those not named have weight 1.
        p: probability of applying any.

    Raises:
        UserError: no step is left, a weight is of no step or below 0, or all are 0.
    """

    def __init__(self, steps: Steps, weights: Mapping[str, float] | None = None, p: float = 1.0) -> None:
        self.steps, self.p, weights = _named(steps), check_probability(p, "OneOf"), weights or {}
        if unknown := set(weights) - set(steps if isinstance(steps, Mapping) else self.steps):
            raise UserError(f"OneOf: weights for {sorted(unknown)}, but the steps are {sorted(self.steps)}")
        self._weights = [float(weights.get(name, 1.0)) for name in self.steps]
        if not self.steps or min(self._weights) < 0 or not sum(self._weights):
            raise UserError(f"OneOf: nothing to choose from among {self.steps} by weights {self._weights}")

    def __call__(self, waveform: Tensor, sample_rate: int) -> Tensor:
        if not happens(self.p):
            return waveform
        drawn = int(torch.multinomial(torch.tensor(self._weights), 1))
        return list(self.steps.values())[drawn](waveform, sample_rate)


class FeatureCompose(nn.Module):
    """Feature augmentations one after the other, each with numbers of its own from a clip's seed.

    Args:
        steps: name -> module `(features [B, L, F], feature_lens [B], seed [B]) -> features`; null removes one, and
            changes nothing for the others.
    """

    def __init__(self, steps: Mapping[str, nn.Module | None]) -> None:
        super().__init__()
        self.steps = nn.ModuleDict({name: step for name, step in steps.items() if step is not None})

    def forward(self, features: Tensor, feature_lens: Tensor, seed: Tensor | None) -> Tensor:
        """`[B, L, F]`, `[B]`, `[B]` to `[B, L, F]`; without seeds nothing is changed."""
        if seed is None:
            return features
        for name, step in self.steps.items():
            features = step(features, feature_lens, seed ^ stream(name))
        return features

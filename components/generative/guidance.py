"""Guidance: away from what a network does without a condition.  Shapes: B batch, L frames, D latent."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor

from utils.errors import UserError

# The sets of streams to be dropped, one per wanted prediction -> the predictions, each [B, L, D].
PredictAll = Callable[[Sequence[frozenset[str]]], Sequence[Tensor]]


class FactoredGuidance:
    """Classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598), each condition with a scale of its own.

    The streams are taken in one group after the other: with `{aligned: [contour], text: [instruction]}` and scales `w`
    the guided prediction is `v_0 + w_aligned (v_aligned - v_0) + w_text (v_all - v_aligned)`. Groups of equal scales
    collapse into one, so plain guidance costs two predictions, and scales of 1 only one.

    Args:
        groups: name -> the streams of the group, in order.
        scales: name of a group -> its scale; a number is everybody's.
        rescale: share by which a guided prediction is brought back to the spread of the unguided one (Lin et al. 2024,
            arXiv:2305.08891, eq. 15-16).
        start, stop: the share of the steps in which guidance is on (Kynkäänniemi et al. 2024, arXiv:2404.07724).

    Raises:
        UserError: a scale is of no group, or a share lies outside [0, 1].
    """

    def __init__(
        self,
        groups: Mapping[str, Collection[str]],
        scales: Mapping[str, float] | float = 1.0,
        rescale: float = 0.0,
        start: float = 0.0,
        stop: float = 1.0,
    ) -> None:
        if not isinstance(scales, Mapping):
            scales = dict.fromkeys(groups, float(scales))
        if unknown := set(scales) - set(groups):
            raise UserError(f"guidance: there is no group {sorted(unknown)[0]!r}, only {', '.join(groups)}")
        for name, value in (("rescale", rescale), ("start", start), ("stop", stop)):
            if not 0 <= value <= 1:
                raise UserError(f"guidance: {name} must lie in [0, 1], got {value}")
        self.rescale, self.start, self.stop = rescale, start, stop
        self._terms = _terms({name: frozenset(streams) for name, streams in groups.items()}, scales)

    def __call__(self, predict_all: PredictAll, done: float, padding_mask: Tensor | None = None) -> Tensor:
        """The guided prediction `[B, L, D]`; `done` is the share of the steps that lies behind."""
        if not self.start <= done < self.stop or len(self._terms) == 1:
            return predict_all([frozenset()])[0]
        predictions = predict_all([drop for drop, _ in self._terms])
        guided = sum(weight * prediction for (_, weight), prediction in zip(self._terms, predictions))
        assert isinstance(guided, Tensor)
        if not self.rescale:
            return guided
        ratio = _spread(predictions[-1], padding_mask) / _spread(guided, padding_mask).clamp(min=1e-8)
        return guided * (self.rescale * ratio + 1 - self.rescale)


def _terms(groups: Mapping[str, frozenset[str]], scales: Mapping[str, float]) -> list[tuple[frozenset[str], float]]:
    """(streams to drop, weight) of every prediction that has a weight; the last drops nothing."""
    dropped = frozenset().union(*groups.values())
    chain, rises = [dropped], []
    for name, streams in groups.items():
        dropped -= streams
        chain.append(dropped)
        rises.append(float(scales.get(name, 1.0)))
    # v_0 + sum w_k (v_k - v_{k-1}) = sum (w_k - w_{k+1}) v_k, with w_0 = 1 and nothing behind the last.
    weights = [before - after for before, after in zip([1.0, *rises], [*rises, 0.0])]
    terms = [(drop, weight) for drop, weight in zip(chain, weights) if weight != 0]
    return terms if terms and not terms[-1][0] else [*terms, (frozenset(), 0.0)]


def _spread(values: Tensor, padding_mask: Tensor | None) -> Tensor:
    """Standard deviation of each item over its own frames, `[B, 1, 1]`."""
    if padding_mask is None:
        return values.std(dim=(1, 2), keepdim=True, unbiased=False)
    real = (~padding_mask).unsqueeze(-1).to(values.dtype)
    count = (real.sum((1, 2), keepdim=True) * values.shape[-1]).clamp(min=1)
    mean = (values * real).sum((1, 2), keepdim=True) / count
    return torch.sqrt(((values - mean).square() * real).sum((1, 2), keepdim=True) / count)

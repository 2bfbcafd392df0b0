"""Latents at unit scale.  Shapes: B batch, L frames, D latent."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from components.features.statistics import FeatureStatistics, Moments
from components.layers import length_mask
from utils.errors import UserError

_CONSTANT = 1e-4  # a deviation below this is that of a dimension that never moved: it is centred, not blown up
_FARTHEST_MEAN = 0.5
_SCALES = (0.5, 2.0)  # a deviation between these is near enough to that of the noise, 1


class LatentStatistics(nn.Module):
    """Mean and standard deviation of each latent dimension, kept in the state: a checkpoint holds them.

    Args:
        latent_dim: D.
        source: `stats.json` of `python -m components.data extract`, or a file of `python -m components.data cmvn`;
            None: mean 0 and deviation 1 until `fit` or a checkpoint says otherwise.

    Raises:
        UserError: the file is missing, is of another number of dimensions, or was made of latents that had been
            standardised before.
    """

    def __init__(self, latent_dim: int, source: str | Path | None = None) -> None:
        super().__init__()
        mean, std = torch.zeros(latent_dim), torch.ones(latent_dim)
        if source is not None:
            found = _read(source, latent_dim)
            mean, std = torch.tensor(found.mean), _safe(torch.tensor(found.var).sqrt())
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def fit(self, moments: Moments, per_dimension: bool = True) -> None:
        """Take over the moments of a collection; one mean and deviation for all dimensions unless `per_dimension`."""
        mean, var = moments.mean, moments.var
        if not per_dimension:
            overall = mean.mean()
            var = (var + (mean - overall).square()).mean().expand_as(var)
            mean = overall.expand_as(mean)
        self.mean.copy_(mean)
        self.std.copy_(_safe(var.sqrt()))

    def standardise(self, latents: Tensor) -> Tensor:
        """`[..., D]` to mean 0 and deviation 1."""
        return (latents - self.mean) / self.std

    def restore(self, latents: Tensor) -> Tensor:
        """`[..., D]` back to their own scale."""
        return latents * self.std + self.mean


def moments_of(latents: Iterable[Tensor | tuple[Tensor, Tensor]]) -> Moments:
    """The moments of all frames, in float64 and without ever holding more than one batch.

    Args:
        latents: `[L, D]` each, or pairs of a batch `[B, L, D]` and its lengths `[B]`.

    Raises:
        UserError: there is none.
    """
    total = None
    for item in latents:
        frames = item if isinstance(item, Tensor) else item[0][length_mask(item[1], item[0].shape[1])]
        if len(frames):
            own = Moments.of(frames.detach().cpu())
            total = own if total is None else total.merge(own)
    if total is None:
        raise UserError("statistics of latents: there is not one frame to make them of")
    return total


def scale_problem(moments: Moments) -> str | None:
    """One sentence where moments are far from those of the noise, mean 0 and deviation 1; else None."""
    overall = float(moments.mean.mean())
    deviation = float((moments.var + (moments.mean - overall).square()).mean().sqrt())
    if abs(overall) <= _FARTHEST_MEAN and _SCALES[0] <= deviation <= _SCALES[1]:
        return None
    return (
        f"the latents have mean {overall:.3g} and standard deviation {deviation:.3g} over {moments.count} frames, far "
        "from the 0 and 1 of the noise they are learned against: give the autoencoder `statistics`, the stats.json of "
        "`python -m components.data extract`, or call its `fit_statistics`"
    )


def _safe(std: Tensor) -> Tensor:
    return torch.where(std > _CONSTANT, std, torch.ones_like(std))


def _read(source: str | Path, latent_dim: int) -> FeatureStatistics:
    found = FeatureStatistics.load(source)
    if len(found.mean) != latent_dim:
        raise UserError(f"statistics: {source} is of {len(found.mean)} dimensions, the latents have {latent_dim}")
    extractor = found.made_of.get("extractor")
    if isinstance(extractor, dict) and extractor.get("statistics") is not None:
        raise UserError(
            f"statistics: {source} was made of latents already standardised by {json.dumps(extractor['statistics'])}: "
            "give that file"
        )
    return found

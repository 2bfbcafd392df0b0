"""Is what was generated new, and is it varied?  Shapes: N clips, D embedding."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from components.metrics.base import MetricResult, Needs
from components.metrics.clips import Clip
from components.metrics.distances import nearest, squared_distances
from components.metrics.intervals import bootstrap, wilson_interval
from components.metrics.set_metrics import SetMetric
from utils.errors import UserError

# Nearer than this part of the usual distance is a copy, up to rounding.
_COPY = 1e-3


class Memorisation(SetMetric):
    """Share of generated clips that lie nearer to a training clip than real clips do that were held out.

    "Nearer" is: than all but `quantile` of the held-out clips. So a generator that draws as the world does scores about
    `quantile`, which is the floor; well above, it copies. `details.z` looks at all distances: the standardised
    rank sum of the two sets of them, below -3 where generated clips are nearer as a whole (Meehan et al. 2020,
    arXiv:2004.05675); copies among many that are none do not get it there.

    Args:
        embedder: near must mean alike: `MelCanvasEmbedder` for words, not an average over time.
        quantile: of the held-out clips' distances.
        num_named: the nearest pairs that `details.nearest` names.

    Raises:
        UserError: a quantile outside of 0 to 1.
    """

    higher_is_better = False

    def __init__(self, embedder: Any, quantile: float = 0.05, num_named: int = 10) -> None:
        if not 0 < quantile < 1:
            raise UserError(f"quantile: expected a share between 0 and 1, got {quantile}")
        self.quantile, self.num_named = quantile, num_named
        super().__init__(embedder)

    @property
    def needs(self) -> Needs:
        return Needs(reference=True, training=True, min_seconds=self.min_seconds)

    def compute(self) -> MetricResult:
        generated, real, training = (self.vectors(name) for name in ("generated", "reference", "training"))
        if not len(generated) or not len(real) or not len(training):
            return self._result(None, len(generated))
        mine, which = nearest(generated, training)
        held_out, _ = nearest(real, training)
        copy = _COPY * float(np.median(held_out))
        # A held-out clip that was trained on says nothing about what is near.
        leaked = int((held_out <= copy).sum())
        held_out = held_out[held_out > copy]
        details: dict[str, Any] = {"num_training": len(training), "num_reference": len(real)}
        skipped = dict(self.num_skipped) | ({"reference: is in the training set": leaked} if leaked else {})
        if not len(held_out):
            return MetricResult(None, len(generated), skipped, details=details)
        threshold = float(np.quantile(held_out, self.quantile))
        near = mine < threshold
        low, high = wilson_interval(int(near.sum()), len(near)) or (None, None)
        names = [clip.id for clip in self.kept["generated"]], [clip.id for clip in self.kept["training"]]
        details |= {
            "threshold": threshold,
            "median_generated": float(np.median(mine)),
            "median_reference": float(np.median(held_out)),
            "num_copies": int((mine <= copy).sum()),
            "z": rank_sum_z(mine, held_out),
            "nearest": [
                {"id": names[0][i], "training_id": names[1][which[i]], "distance": float(mine[i])}
                for i in np.argsort(mine, kind="stable")[: self.num_named]
            ],
        }
        return MetricResult(
            float(near.mean()),
            len(near),
            skipped,
            floor=self.quantile,
            low=low,
            high=high,
            per_item=dict(zip(names[0], mine.tolist())),
            details=details,
        )


def rank_sum_z(one: np.ndarray, other: np.ndarray) -> float:
    """Standardised Mann-Whitney U (1947) of `[N]` and `[M]`: below zero where the first are smaller."""
    n, m = len(one), len(other)
    values, counts = np.unique(np.concatenate([one, other]), return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2  # of equals, the mean
    u = ranks[np.searchsorted(values, one)].sum() - n * (n + 1) / 2
    total = n + m
    ties = float((counts.astype(np.float64) ** 3 - counts).sum()) / (total * (total - 1))
    variance = n * m / 12 * (total + 1 - ties)
    return float((u - n * m / 2) / math.sqrt(variance)) if variance > 0 else 0.0


class Diversity(SetMetric):
    """Mean distance between generated clips of one class, the mean over clips; the ceiling is that of real clips.

    Far below it, clips of a class are all alike; above, they are noisier than real ones.

    Args:
        embedder: see `components.metrics.Embedder`.
        target: of `Clip.labels`, what makes a class; None takes all clips as one.
        num_draws, seed: of the bootstrap interval.
    """

    def __init__(self, embedder: Any, target: str | None = None, num_draws: int = 1000, seed: int = 0) -> None:
        self.target, self.num_draws, self.seed = target, num_draws, seed
        super().__init__(embedder)

    @property
    def needs(self) -> Needs:
        return Needs(label=self.target, min_seconds=self.min_seconds)

    def _usable(self, clips: list[Clip], which: str) -> list[Clip]:
        if self.target is None:
            return clips
        named = [clip for clip in clips if self.target in clip.labels]
        if which == "generated" and len(named) < len(clips):
            self.num_skipped[f"no label {self.target!r}"] += len(clips) - len(named)
        return named

    def compute(self) -> MetricResult:
        spreads, per_class = self._spread("generated")
        real, real_classes = self._spread("reference")
        skipped = dict(self.num_skipped)
        if alone := len(self.kept["generated"]) - len(spreads):
            skipped["alone in its class"] = alone
        if not len(spreads):
            return MetricResult(None, 0, skipped)
        low, high = bootstrap(spreads, num_draws=self.num_draws, seed=self.seed) or (None, None)
        value, ceiling = float(spreads.mean()), float(real.mean()) if len(real) else None
        details: dict[str, Any] = {"per_class": per_class, "reference_per_class": real_classes}
        if ceiling:
            details["ratio"] = value / ceiling
        return MetricResult(value, len(spreads), skipped, ceiling=ceiling, low=low, high=high, details=details)

    def _spread(self, which: str) -> tuple[np.ndarray, dict[str, float]]:
        """For each clip with classmates its mean distance to these; and the mean of each class."""
        vectors, clips = self.vectors(which), self.kept[which]
        labels = np.array([clip.labels[self.target] if self.target else "all" for clip in clips])
        spreads, per_class = [], {}
        for label in sorted(set(labels.tolist())):
            members = vectors[labels == label]
            if len(members) < 2:
                continue
            distances = np.sqrt(squared_distances(members, members))
            np.fill_diagonal(distances, 0)
            own = distances.sum(1) / (len(members) - 1)
            spreads.append(own)
            per_class[str(label)] = float(own.mean())
        return np.concatenate(spreads) if spreads else np.zeros(0), per_class

"""Generated clips against real ones as two sets; nothing is paired.  Shapes: N, M clips, D embedding, K classes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from components.metrics.base import Metric, MetricResult, Needs
from components.metrics.clips import Clip
from components.metrics.distances import (
    Kernel,
    frechet_distance,
    gaussian_kernel,
    median_distance,
    polynomial_kernel,
    squared_maximum_mean_discrepancy,
)
from components.metrics.embedders import embed_clips
from components.metrics.intervals import centred_interval, percentiles
from utils.errors import UserError


class SetMetric(Metric):
    """Keeps what an embedder makes of each set.

    Args:
        embedder: see `components.metrics.Embedder`.
    """

    output: ClassVar[str] = "embed"

    def __init__(self, embedder: Any) -> None:
        self.embedder = embedder
        super().__init__()

    def reset(self) -> None:
        super().reset()
        self._parts: dict[str, list[np.ndarray]] = {"generated": [], "reference": [], "training": []}
        self.kept: dict[str, list[Clip]] = {name: [] for name in self._parts}

    @property
    def min_seconds(self) -> float:
        """What the embedder can not do with less than."""
        return float(getattr(self.embedder, "min_seconds", 0.0))

    def update(
        self, generated: Sequence[Clip] = (), reference: Sequence[Clip] = (), training: Sequence[Clip] = ()
    ) -> None:
        for name, clips in (("generated", generated), ("reference", reference), ("training", training)):
            clips = self._usable(self._long_enough(clips, "" if name == "generated" else name), name)
            if not clips:
                continue
            vectors = embed_clips(self.embedder, clips, self.output)
            finite = np.isfinite(vectors).all(1)
            if not finite.all():
                self.num_skipped[f"{name}: embedding not finite"] += int((~finite).sum())
            self._parts[name].append(vectors[finite])
            # the audio is let go of
            self.kept[name] += [_without_audio(clip) for clip, good in zip(clips, finite) if good]

    def _usable(self, clips: list[Clip], which: str) -> list[Clip]:
        return clips

    def vectors(self, which: str) -> np.ndarray:
        """All of a set, `[N, D]`; `[0, 0]` where there is none."""
        parts = self._parts[which]
        return np.concatenate(parts) if parts else np.zeros((0, 0))


def _without_audio(clip: Clip) -> Clip:
    return Clip(clip.id, clip.samples[:0], clip.sample_rate, clip.text, clip.labels)


class SetDistance(SetMetric):
    """A distance between generated and real clips, with what real clips score among themselves at the same number.

    The value is that of all generated against all reference clips. The floor: with training clips, as many of these as
    were generated against the reference clips; without, as many of the reference clips (at most half) against the rest
    of them. Where the numbers of the floor are not those of the value, `details.value_at_floor` is the value at these.

    Args:
        embedder: see `components.metrics.Embedder`.
        num_splits: random draws that the floor is a mean of.
        num_draws: of the bootstrap interval.
        seed: of both.
    """

    higher_is_better = False
    lowest: ClassVar[float] = -np.inf

    def __init__(self, embedder: Any, num_splits: int = 20, num_draws: int = 100, seed: int = 0) -> None:
        self.num_splits, self.num_draws, self.seed = num_splits, num_draws, seed
        super().__init__(embedder)

    @property
    def needs(self) -> Needs:
        return Needs(reference=True, min_seconds=self.min_seconds)

    @abstractmethod
    def distance(self, x: np.ndarray, y: np.ndarray) -> float:
        """Between `[N, D]` and `[M, D]`, two vectors or more each."""

    def begin(self, reference: np.ndarray) -> None:
        """Settle what the distance takes from all reference vectors `[M, D]`."""

    def compute(self) -> MetricResult:
        x, y, training = (self.vectors(name) for name in ("generated", "reference", "training"))
        details: dict[str, Any] = {"num_reference": len(y), "dimension": x.shape[1]}
        if min(len(x), len(y)) < 2:
            return self._result(None, len(x), details=details)
        self.begin(y)
        value = self.distance(x, y)
        floors, more = self._floor(x, y, training)
        interval = centred_interval(value, self._bootstrap(x, y))
        floor = float(np.mean(floors)) if floors else None
        if len(floors) > 1:
            more["floor_low"], more["floor_high"] = percentiles(np.array(floors))
        return self._result(
            value,
            len(x),
            floor=floor,
            low=max(self.lowest, interval.low),
            high=interval.high,
            details=details | more | self.more_details(x, y),
        )

    def more_details(self, x: np.ndarray, y: np.ndarray) -> dict[str, Any]:
        """What the distance has to add."""
        return {}

    def _bootstrap(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        generator = np.random.default_rng(self.seed)
        draws = []
        for _ in range(self.num_draws):
            rows, others = generator.integers(len(x), size=len(x)), generator.integers(len(y), size=len(y))
            draws.append(self.distance(x[rows], y[others]))
        return np.array(draws)

    def _floor(self, x: np.ndarray, y: np.ndarray, training: np.ndarray) -> tuple[list[float], dict[str, Any]]:
        generator = np.random.default_rng(self.seed)
        floors, values = [], []
        if len(training) >= 2:
            size, origin, of_reference = min(len(x), len(training)), "training clips", len(y)
            for _ in range(self.num_splits):
                floors.append(self.distance(_sample(generator, training, size), y))
                values += [self.distance(_sample(generator, x, size), y)] if size < len(x) else []
        else:
            size, origin = min(len(x), len(y) // 2), "reference clips against the rest of them"
            of_reference = len(y) - size
            for _ in range(self.num_splits if size >= 2 else 0):
                order = generator.permutation(len(y))
                floors.append(self.distance(y[order[:size]], y[order[size:]]))
                values.append(self.distance(_sample(generator, x, size), _sample(generator, y, of_reference)))
        details: dict[str, Any] = {"floor_num_clips": size, "floor_num_reference": of_reference, "floor_from": origin}
        if values:
            details["value_at_floor"] = float(np.mean(values))
        return floors, details


def _sample(generator: np.random.Generator, vectors: np.ndarray, size: int) -> np.ndarray:
    return vectors[generator.permutation(len(vectors))[:size]]


class FrechetAudioDistance(SetDistance):
    """Frechet distance of embeddings (Kilgour et al. 2019, arXiv:1812.08466), squared as is the custom.

    It is too large by about c / N: compare values of the same N alone, and each with its floor.

    Args:
        embedder: see `components.metrics.Embedder`.
        infinity: also fit the distance of random subsets linearly in 1 / N and give its value at 1 / N = 0 as
            `details.infinity` (Chong & Forsyth 2020, arXiv:1911.07023). Both sets are taken at the same N, as both are
            small here. The line holds for N well above D.
        num_subsets: random subsets of each N.
        num_splits, num_draws, seed: as of `SetDistance`.
    """

    lowest = 0.0

    def __init__(
        self,
        embedder: Any,
        infinity: bool = False,
        num_subsets: int = 5,
        num_splits: int = 20,
        num_draws: int = 100,
        seed: int = 0,
    ) -> None:
        super().__init__(embedder, num_splits, num_draws, seed)
        self.infinity, self.num_subsets = infinity, num_subsets

    def distance(self, x: np.ndarray, y: np.ndarray) -> float:
        """Squared Frechet distance."""
        return frechet_distance(x, y)

    def more_details(self, x: np.ndarray, y: np.ndarray) -> dict[str, Any]:
        """`infinity`, and how well the line fits (`infinity_r2`)."""
        largest = min(len(x), len(y))
        if not self.infinity or largest < 20:
            return {}
        generator = np.random.default_rng(self.seed)
        sizes = np.linspace(max(10, largest // 4), largest, 12).astype(int)
        means = [
            np.mean(
                [
                    frechet_distance(_sample(generator, x, size), _sample(generator, y, size))
                    for _ in range(self.num_subsets)
                ]
            )
            for size in sizes
        ]
        slope, intercept = np.polyfit(1 / sizes, means, 1)
        left = np.square(means - (slope / sizes + intercept)).sum()
        around = np.square(means - np.mean(means)).sum()
        return {"infinity": float(intercept), "infinity_r2": float(1 - left / around) if around else 1.0}


class KernelAudioDistance(SetDistance):
    """Unbiased squared maximum mean discrepancy of embeddings (Chung et al. 2025, arXiv:2502.15602).

    Its floor is zero at any N, with a spread that N decides; small values may be negative.

    Args:
        embedder: see `components.metrics.Embedder`.
        kernel: "gaussian", with the median distance between reference clips for bandwidth, or "polynomial", that of the
            kernel inception distance.
        scale: factor of the value; the kernel audio distance toolkit prints it times 100.
        num_splits, num_draws, seed: as of `SetDistance`.

    Raises:
        UserError: an unknown kernel.
    """

    def __init__(
        self,
        embedder: Any,
        kernel: str = "gaussian",
        scale: float = 100.0,
        num_splits: int = 20,
        num_draws: int = 100,
        seed: int = 0,
    ) -> None:
        if kernel not in ("gaussian", "polynomial"):
            raise UserError(f"kernel: expected gaussian or polynomial, got {kernel!r}")
        super().__init__(embedder, num_splits, num_draws, seed)
        self.kernel, self.scale = kernel, scale
        self._kernel: Kernel = polynomial_kernel

    def begin(self, reference: np.ndarray) -> None:
        """Settle the bandwidth, so that the floor and all draws are measured with the same."""
        if self.kernel == "gaussian":
            self._kernel = gaussian_kernel(median_distance(reference) or 1.0)

    def distance(self, x: np.ndarray, y: np.ndarray) -> float:
        """Scaled MMD^2."""
        k = self._kernel
        return self.scale * squared_maximum_mean_discrepancy(k(x, x), k(y, y), k(x, y))


class InceptionScore(SetMetric):
    """`exp E KL(p(class | clip) || p(class))`: clips that are sure and different (Salimans et al. 2016, 1606.03498).

    From 1 (all the same, or all unsure) to the number of classes. The ceiling is that of as many reference clips, where
    there are any. It knows nothing of what was asked for.

    Args:
        embedder: with `logits`.
        num_draws, seed: of the bootstrap interval.
    """

    higher_is_better = True
    output = "logits"

    def __init__(self, embedder: Any, num_draws: int = 1000, seed: int = 0) -> None:
        self.num_draws, self.seed = num_draws, seed
        super().__init__(embedder)

    @property
    def needs(self) -> Needs:
        return Needs(min_seconds=self.min_seconds)

    def compute(self) -> MetricResult:
        logits, real = self.vectors("generated"), self.vectors("reference")
        if not len(logits):
            return self._result(None, 0)
        log_probs = log_softmax(logits)
        value = inception_score(log_probs)
        draws = np.random.default_rng(self.seed)
        scores = [
            inception_score(log_probs[draws.integers(len(logits), size=len(logits))]) for _ in range(self.num_draws)
        ]
        low, high = centred_interval(value, np.array(scores)) if len(logits) > 1 else (None, None)
        ceiling, details = None, {"num_classes": logits.shape[1]}
        if len(real):
            size = min(len(real), len(logits))
            ceiling = inception_score(log_softmax(_sample(np.random.default_rng(self.seed), real, size)))
            details["ceiling_num_clips"] = size
        return self._result(value, len(logits), floor=1.0, ceiling=ceiling, low=low, high=high, details=details)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis, float64."""
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def inception_score(log_probs: np.ndarray) -> float:
    """Of log-probabilities `[N, K]`."""
    probs = np.exp(log_probs)
    marginal = np.log(np.maximum(probs.mean(0), np.finfo(np.float64).tiny))
    return float(np.exp((probs * (log_probs - marginal)).sum(1).mean()))

"""What a classifier hears in a clip against what it hears in its reference.  Shapes: B batch, K classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from components.metrics.base import MetricResult, PairedMetric, Unscorable
from components.metrics.clips import Clip
from components.metrics.embedders import embed_clips
from components.metrics.set_metrics import log_softmax
from utils.errors import UserError


def softmax_divergence(generated: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """`KL(reference || generated)` of one class out of K, nats; logits `[..., K]` to `[...]`."""
    p, q = log_softmax(np.float64(generated)), log_softmax(np.float64(reference))
    return (np.exp(q) * (q - p)).sum(-1)


def sigmoid_divergence(generated: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """`KL(reference || generated)` of K classes that are there or not, nats; logits `[..., K]` to `[...]`.

    `sum_k q_k log(q_k / p_k) + (1 - q_k) log((1 - q_k) / (1 - p_k))`, the divergence of K independent yes and no. A
    widely used program leaves out the second term: what is left is no divergence, and can be negative.
    """
    p, q = np.float64(generated), np.float64(reference)
    present = np.exp(_log_sigmoid(q)) * (_log_sigmoid(q) - _log_sigmoid(p))
    absent = np.exp(_log_sigmoid(-q)) * (_log_sigmoid(-q) - _log_sigmoid(-p))
    return (present + absent).sum(-1)


def _log_sigmoid(logits: np.ndarray) -> np.ndarray:
    return -np.logaddexp(0, -logits)


class KullbackLeibler(PairedMetric):
    """Mean divergence of the classes heard in a reference from those heard in its generated clip, in nats.

    The ceiling is the mean over generated clips and references that do not belong together.

    Args:
        embedder: with `logits`.
        kind: "softmax" where one class out of K is heard, "sigmoid" where each may be (AudioSet's tags).
        num_draws, seed: as of `PairedMetric`.

    Raises:
        UserError: an unknown kind.
    """

    unit = "nats"
    higher_is_better = False
    needs_sound = False

    def __init__(self, embedder: Any, kind: str = "softmax", num_draws: int = 1000, seed: int = 0) -> None:
        if kind not in ("softmax", "sigmoid"):
            raise UserError(f"kind: expected softmax or sigmoid, got {kind!r}")
        self.embedder, self.divergence = embedder, softmax_divergence if kind == "softmax" else sigmoid_divergence
        super().__init__(max_length_difference=None, num_draws=num_draws, seed=seed)

    def reset(self) -> None:
        super().reset()
        self._logits: list[tuple[np.ndarray, np.ndarray]] = []

    def prepare(self, clips: Sequence[Clip]) -> None:
        """Classify all at once."""
        least = getattr(self.embedder, "min_seconds", 0.0)
        embed_clips(self.embedder, [clip for clip in clips if clip.duration >= least], "logits")

    def score(self, generated: Clip, reference: Clip) -> float:
        """The divergence of a pair."""
        least = getattr(self.embedder, "min_seconds", 0.0)
        if min(generated.duration, reference.duration) < least:
            raise Unscorable(f"shorter than {least:g} s")
        p, q = (embed_clips(self.embedder, [clip], "logits")[0] for clip in (generated, reference))
        divergence = float(self.divergence(p, q))
        if np.isfinite(divergence):
            self._logits.append((p, q))
        return divergence

    def compute(self) -> MetricResult:
        result = super().compute()
        if len(self._logits) < 2:
            return result
        p, q = (np.array(side) for side in zip(*self._logits))
        others = np.mean([self.divergence(p, np.roll(q, shift, 0)).mean() for shift in range(1, min(len(p), 11))])
        return self._mean(self.scores, len(self.scores), floor=0.0, ceiling=float(others))

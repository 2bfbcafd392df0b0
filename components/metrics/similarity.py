"""Cosines of embeddings: with a text, the own reference, a speaker.  Shapes: N clips, D embedding, S speakers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from components.metrics.base import Metric, MetricResult, Needs, PairedMetric, Unscorable
from components.metrics.clips import Clip
from components.metrics.embedders import embed_clips
from components.metrics.intervals import bootstrap
from components.metrics.set_metrics import SetMetric
from utils.errors import UserError


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Each of `[N, D]` divided by its length; zero stays zero."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


class ClapScore(Metric):
    """Mean cosine of a clip's embedding and its text's (Wu et al. 2023, arXiv:2211.06687; Huang et al. 2023).

    The floor is the mean over clips and texts of others; the ceiling that of the reference clips with their own texts.

    Args:
        embedder: with `embed` and, unless there is a `text_embedder`, `embed_text(list of str) -> [B, D]`.
        text_embedder: of the same space.
        num_draws, seed: of the bootstrap interval.

    Raises:
        UserError: nothing embeds texts.
    """

    higher_is_better = True

    def __init__(self, embedder: Any, text_embedder: Any = None, num_draws: int = 1000, seed: int = 0) -> None:
        self.embedder, self.text_embedder = embedder, text_embedder or embedder
        if not hasattr(self.text_embedder, "embed_text"):
            raise UserError(f"text_embedder: {type(self.text_embedder).__name__} has no embed_text")
        self.num_draws, self.seed = num_draws, seed
        super().__init__()

    @property
    def needs(self) -> Needs:
        return Needs(text=True, min_seconds=float(getattr(self.embedder, "min_seconds", 0.0)))

    def reset(self) -> None:
        super().reset()
        self._pairs: dict[str, list[tuple[str, str, np.ndarray, np.ndarray]]] = {"generated": [], "reference": []}

    def update(
        self, generated: Sequence[Clip] = (), reference: Sequence[Clip] = (), training: Sequence[Clip] = ()
    ) -> None:
        for name, clips in (("generated", generated), ("reference", reference)):
            clips = self._long_enough(clips, "" if name == "generated" else name)
            with_text = [clip for clip in clips if clip.text]
            if name == "generated" and len(with_text) < len(clips):
                self.num_skipped["no text"] += len(clips) - len(with_text)
            if not with_text:
                continue
            sounds = unit_rows(embed_clips(self.embedder, with_text))
            texts = self.text_embedder.embed_text([clip.text for clip in with_text])
            texts = unit_rows(texts.double().cpu().numpy())
            self._pairs[name] += [
                (clip.id, clip.text, *vectors) for clip, *vectors in zip(with_text, sounds, texts, strict=True)
            ]

    def compute(self) -> MetricResult:
        pairs = self._pairs["generated"]
        if not pairs:
            return self._result(None, 0)
        sounds, texts = (np.array([pair[i] for pair in pairs]) for i in (2, 3))
        own = (sounds * texts).sum(1)
        interval = bootstrap(own, num_draws=self.num_draws, seed=self.seed)
        words = np.array([pair[1] for pair in pairs])
        other = words[:, None] != words
        floor = float((sounds @ texts.T)[other].mean()) if other.any() else None
        real = [float(sound @ text) for _, _, sound, text in self._pairs["reference"]]
        low, high = interval or (None, None)
        per_item = {pair[0]: float(cosine) for pair, cosine in zip(pairs, own)}
        ceiling = float(np.mean(real)) if real else None
        return self._result(
            float(own.mean()), len(pairs), floor=floor, ceiling=ceiling, low=low, high=high, per_item=per_item
        )


class EmbeddingSimilarity(PairedMetric):
    """Mean cosine of the embeddings of a generated clip and its reference.

    The floor is the mean over clips and references that do not belong together: many embeddings are nearly parallel for
    whatever they are given, and a cosine of 0.98 says nothing without it.

    Args:
        embedder: see `components.metrics.Embedder`.
        num_draws, seed: as of `PairedMetric`.
    """

    higher_is_better = True

    def __init__(self, embedder: Any, num_draws: int = 1000, seed: int = 0) -> None:
        self.embedder = embedder
        super().__init__(max_length_difference=None, num_draws=num_draws, seed=seed)

    def reset(self) -> None:
        super().reset()
        self._vectors: list[tuple[np.ndarray, np.ndarray]] = []

    def score(self, generated: Clip, reference: Clip) -> float:
        """The cosine of a pair."""
        least = getattr(self.embedder, "min_seconds", 0.0)
        if min(generated.duration, reference.duration) < least:
            raise Unscorable(f"shorter than {least:g} s")
        one, other = unit_rows(embed_clips(self.embedder, [generated, reference]))
        self._vectors.append((one, other))
        return float(one @ other)

    def compute(self) -> MetricResult:
        floor, n = None, len(self._vectors)
        if n > 1:
            ones, others = (np.array(side) for side in zip(*self._vectors))
            total = ones.sum(0) @ others.sum(0)
            floor = float((total - (ones * others).sum()) / (n * (n - 1)))
        return self._mean(self.scores, len(self.scores), floor=floor, ceiling=1.0)


class SpeakerSimilarity(SetMetric):
    """Mean cosine of a generated clip's embedding and the mean embedding of real clips of the speaker it was to be.

    The floor is the mean cosine to the other speakers; the ceiling that of real clips to the rest of their own speaker.

    Args:
        embedder: of speakers; a tagger of ours that was trained to tell voices apart will do.
        target: of `Clip.labels`, where the speaker is named.
        num_draws, seed: of the bootstrap interval.
    """

    higher_is_better = True

    def __init__(self, embedder: Any, target: str = "speaker", num_draws: int = 1000, seed: int = 0) -> None:
        self.target, self.num_draws, self.seed = target, num_draws, seed
        super().__init__(embedder)

    @property
    def needs(self) -> Needs:
        return Needs(reference=True, label=self.target, min_seconds=self.min_seconds)

    def _usable(self, clips: list[Clip], which: str) -> list[Clip]:
        named = [clip for clip in clips if self.target in clip.labels]
        if which == "generated" and len(named) < len(clips):
            self.num_skipped[f"no label {self.target!r}"] += len(clips) - len(named)
        return named

    def compute(self) -> MetricResult:
        real_labels = np.array([clip.labels[self.target] for clip in self.kept["reference"]])
        speakers = sorted(set(real_labels.tolist()))
        skipped = dict(self.num_skipped)
        clips = self.kept["generated"]
        known = np.array([clip.labels[self.target] in speakers for clip in clips], dtype=bool)
        if unknown := int((~known).sum()):
            skipped["no real clip of the speaker"] = unknown
        if not known.any():
            return MetricResult(None, 0, skipped)
        real = unit_rows(self.vectors("reference"))
        sums = np.array([real[real_labels == name].sum(0) for name in speakers])
        cosines = unit_rows(self.vectors("generated")[known]) @ unit_rows(sums).T  # [N, S]
        wanted = np.array([speakers.index(clip.labels[self.target]) for clip, good in zip(clips, known) if good])
        rows = np.arange(len(wanted))
        own = cosines[rows, wanted]
        low, high = bootstrap(own, num_draws=self.num_draws, seed=self.seed) or (None, None)
        floor = float((cosines.sum() - own.sum()) / (cosines.size - len(own))) if len(speakers) > 1 else None
        names = [clip.id for clip, good in zip(clips, known) if good]
        return MetricResult(
            float(own.mean()),
            len(own),
            skipped,
            floor=floor,
            ceiling=_leave_one_out(real, real_labels, speakers, sums),
            low=low,
            high=high,
            per_item=dict(zip(names, own.tolist())),
            details={"num_speakers": len(speakers), "nearest_is_right": float((cosines.argmax(1) == wanted).mean())},
        )


def _leave_one_out(real: np.ndarray, labels: np.ndarray, speakers: list[str], sums: np.ndarray) -> float | None:
    cosines = []
    for vector, label in zip(real, labels):
        if (labels == label).sum() > 1:
            cosines.append(float(vector @ unit_rows(sums[speakers.index(label)] - vector)))
    return float(np.mean(cosines)) if cosines else None

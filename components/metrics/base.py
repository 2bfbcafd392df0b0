"""What all metrics have in common."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import numpy as np

from components.metrics.clips import Clip, join
from components.metrics.intervals import bootstrap

# Below this peak (-100 dB of full scale, less than a step of 16 bits) a clip holds no sound.
_SILENT = 1e-5


@dataclass(frozen=True)
class MetricResult:
    """One number with everything needed to judge it.

    Attributes:
        value: None where no item could be used.
        num_used: items behind the value.
        num_skipped: {reason: number of items} left out; nothing is left out without being counted here.
        floor, ceiling: the lower and the upper anchor. Of a distance: what real recordings score among themselves, and
            what unrelated clips score. Of a score, where more is better: chance, and what real recordings reach.
        low, high: a 95 % interval for the sampling of items.
        unit: of all of these.
        per_item: {id: number} where the metric has one for each item.
        details: whatever else the metric knows.
    """

    value: float | None
    num_used: int
    num_skipped: dict[str, int] = field(default_factory=dict)
    floor: float | None = None
    ceiling: float | None = None
    low: float | None = None
    high: float | None = None
    unit: str = ""
    per_item: dict[str, float] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For JSON, without `per_item`."""
        content = asdict(self)
        del content["per_item"]
        return content


@dataclass(frozen=True)
class Needs:
    """What a metric has to be given.

    Attributes:
        paired: a reference for each generated clip.
        reference: real clips, paired or not.
        training: the clips that the generator was trained on.
        text: a text with each generated clip.
        label: a target that `Clip.labels` must name.
        min_seconds: shorter clips are skipped, and counted.
        sample_rate: Hz that the metric takes its audio to by itself; None for whatever the clips have.
    """

    paired: bool = False
    reference: bool = False
    training: bool = False
    text: bool = False
    label: str | None = None
    min_seconds: float = 0.0
    sample_rate: int | None = None


class Unscorable(Exception):
    """Why one item has no score, in a few words that come back for every item of the kind."""


class Metric(ABC):
    """Collects clips by `update`, gives one `MetricResult` by `compute`; more clips may follow.

    Attributes:
        unit: of the value.
        higher_is_better: None where neither end is good.
    """

    unit: str = ""
    higher_is_better: ClassVar[bool | None] = None

    def __init__(self) -> None:
        self.reset()

    @property
    def needs(self) -> Needs:
        """What `update` has to be given."""
        return Needs()

    def reset(self) -> None:
        """Forget all clips."""
        self.num_skipped: Counter[str] = Counter()

    @abstractmethod
    def update(
        self, generated: Sequence[Clip] = (), reference: Sequence[Clip] = (), training: Sequence[Clip] = ()
    ) -> None:
        """Take in clips of any of the three sets; where `needs.paired`, the first two go together one by one."""

    @abstractmethod
    def compute(self) -> MetricResult:
        """The result over all clips so far."""

    def _result(self, value: float | None, num_used: int, **rest: Any) -> MetricResult:
        return MetricResult(value, num_used, dict(self.num_skipped), unit=self.unit, **rest)

    def _long_enough(self, clips: Sequence[Clip], which: str = "") -> list[Clip]:
        """Those of at least `needs.min_seconds`; the others are counted, by `which` unless they are generated."""
        least = self.needs.min_seconds
        kept = [clip for clip in clips if len(clip.samples) and clip.duration >= least]
        if len(kept) < len(clips):
            reason = f"shorter than {least:g} s" if least else "empty"
            self.num_skipped[f"{which}: {reason}" if which else reason] += len(clips) - len(kept)
        return kept


class PairedMetric(Metric):
    """The mean of a score of each generated clip against its own reference.

    Args:
        max_length_difference: seconds; up to this the longer of a pair is cut, above it the pair is skipped. None where
            lengths may differ.
        num_draws, seed: of the bootstrap interval of the mean.
    """

    min_seconds: ClassVar[float] = 0.0
    needs_sound: ClassVar[bool] = True

    def __init__(self, max_length_difference: float | None = 0.1, num_draws: int = 1000, seed: int = 0) -> None:
        self.max_length_difference, self.num_draws, self.seed = max_length_difference, num_draws, seed
        super().__init__()

    @property
    def needs(self) -> Needs:
        return Needs(paired=True, reference=True, min_seconds=self.min_seconds)

    def reset(self) -> None:
        super().reset()
        self.scores: list[tuple[str, float]] = []

    @abstractmethod
    def score(self, generated: Clip, reference: Clip) -> float:
        """The score of a pair of one rate and, unless lengths may differ, one length.

        Raises:
            Unscorable: it has none.
        """

    def prepare(self, clips: Sequence[Clip]) -> None:
        """Work on all clips of an update at once, where that is faster; `Clip.remember` keeps it."""

    def update(
        self, generated: Sequence[Clip] = (), reference: Sequence[Clip] = (), training: Sequence[Clip] = ()
    ) -> None:
        """Take in pairs.

        Raises:
            ValueError: not as many references as generated clips.
        """
        if len(generated) != len(reference):
            raise ValueError(
                f"{type(self).__name__} takes pairs: {len(generated)} generated, {len(reference)} references"
            )
        self.prepare([clip for clip in (*generated, *reference) if len(clip.samples)])
        for one, other in zip(generated, reference):
            self._take(one, other)

    def _take(self, generated: Clip, reference: Clip) -> None:
        try:
            self.scores.append((generated.id, self._checked_score(generated, reference)))
        except Unscorable as reason:
            self.num_skipped[str(reason)] += 1

    def _checked_score(self, generated: Clip, reference: Clip) -> float:
        generated, reference = align(generated, reference, self.max_length_difference)
        if min(generated.duration, reference.duration) < self.min_seconds:
            raise Unscorable(f"shorter than {self.min_seconds:g} s")
        if self.needs_sound:
            for clip, what in ((reference, "silent reference"), (generated, "silent output")):
                if np.abs(clip.samples).max() < _SILENT:
                    raise Unscorable(what)
        score = float(self.score(generated, reference))
        if not math.isfinite(score):
            raise Unscorable("the score is not finite")
        return score

    def compute(self) -> MetricResult:
        return self._mean(self.scores, len(self.scores))

    def _mean(self, scores: Sequence[tuple[str, float]], num_used: int, **rest: Any) -> MetricResult:
        values = np.array([score for _, score in scores], dtype=np.float64)
        interval = bootstrap(values, num_draws=self.num_draws, seed=self.seed)
        low, high = interval or (None, None)
        value = float(values.mean()) if len(values) else None
        return self._result(value, num_used, low=low, high=high, per_item=dict(scores), **rest)


def align(generated: Clip, reference: Clip, max_length_difference: float | None) -> tuple[Clip, Clip]:
    """A pair at the generated clip's rate, and of one length unless `max_length_difference`, in seconds, is None.

    Raises:
        Unscorable: one is empty, or their lengths differ by more.
    """
    if not len(generated.samples) or not len(reference.samples):
        raise Unscorable("empty")
    if generated.sample_rate != reference.sample_rate:
        samples = reference.at(generated.sample_rate)
        reference = Clip(reference.id, samples, generated.sample_rate, reference.text, reference.labels)
    if max_length_difference is None:
        return generated, reference
    if abs(generated.duration - reference.duration) > max_length_difference:
        raise Unscorable(f"lengths differ by more than {max_length_difference:g} s")
    shorter = min(len(generated.samples), len(reference.samples))
    return generated.cut(shorter), reference.cut(shorter)


class JoiningMetric(PairedMetric):
    """A paired metric that needs more speech than a word has: clips of one class may be joined end to end.

    Args:
        join_by: a target of `Clip.labels` (`speaker`); None scores each clip alone.
        join_seconds: a piece is scored when it is so long.
        options: of `PairedMetric`.
    """

    def __init__(self, join_by: str | None = None, join_seconds: float = 5.0, **options: Any) -> None:
        self.join_by, self.join_seconds = join_by, join_seconds
        super().__init__(**options)

    @property
    def needs(self) -> Needs:
        return Needs(paired=True, reference=True, label=self.join_by, min_seconds=self.min_seconds)

    def reset(self) -> None:
        super().reset()
        self.waiting: dict[str, list[tuple[Clip, Clip]]] = {}
        self.num_scored = 0

    def _take(self, generated: Clip, reference: Clip) -> None:
        if self.join_by is None:
            super()._take(generated, reference)
            return
        label = generated.labels.get(self.join_by)
        if label is None:
            self.num_skipped[f"no label {self.join_by!r}"] += 1
            return
        pairs = self.waiting.setdefault(str(label), [])
        pairs.append((generated, reference))
        if sum(one.duration for one, _ in pairs) >= self.join_seconds:
            del self.waiting[str(label)]
            self._score_joined(pairs)

    def _score_joined(self, pairs: Sequence[tuple[Clip, Clip]]) -> None:
        """Each pair is cut to one length first, so that the next begins together."""
        aligned = []
        for pair in pairs:
            try:
                aligned.append(align(*pair, self.max_length_difference))
            except Unscorable as reason:
                self.num_skipped[str(reason)] += 1
        if not aligned:
            return
        whole = join([one for one, _ in aligned]), join([other for _, other in aligned])
        try:
            self.scores.append((whole[0].id, self._checked_score(*whole)))
            self.num_scored += len(aligned)
        except Unscorable as reason:
            self.num_skipped[str(reason)] += len(aligned)

    def compute(self) -> MetricResult:
        if self.join_by is None:
            return super().compute()
        for label in list(self.waiting):
            self._score_joined(self.waiting.pop(label))
        return self._mean(self.scores, self.num_scored, details={"num_pieces": len(self.scores)})

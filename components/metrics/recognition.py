"""Does a recogniser hear what was asked for?  Shapes: B batch, T samples."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from components.metrics.base import Metric, MetricResult, Needs
from components.metrics.clips import Clip, pad_clips
from components.metrics.embedders import embed_clips
from components.metrics.intervals import bootstrap, wilson_interval
from utils.errors import UserError


class ClassifierAccuracy(Metric):
    """Share of generated clips in which a judge hears the class that was asked for, with Wilson's interval.

    The judge must not have seen generated clips, nor be part of the generator. The ceiling is its share of the
    reference clips; the floor that of always naming the class that was asked for most.

    Args:
        judge: an embedder with `logits`.
        target: of `Clip.labels`, what was asked for.
        classes: names in the order of the logits, where the judge has no `classes`.

    Raises:
        UserError: the judge's classes are known from nowhere.
    """

    higher_is_better = True

    def __init__(self, judge: Any, target: str, classes: Sequence[str] | None = None) -> None:
        self.judge, self.target = judge, target
        names = classes if classes is not None else getattr(judge, "classes", None)
        if names is None:
            raise UserError(f"classes: {type(judge).__name__} does not name its classes, in the order of its logits")
        self.classes = [str(name) for name in names]
        super().__init__()

    @property
    def needs(self) -> Needs:
        return Needs(label=self.target, min_seconds=float(getattr(self.judge, "min_seconds", 0.0)))

    def reset(self) -> None:
        super().reset()
        self._heard: dict[str, list[tuple[str, str, str]]] = {"generated": [], "reference": []}

    def update(
        self, generated: Sequence[Clip] = (), reference: Sequence[Clip] = (), training: Sequence[Clip] = ()
    ) -> None:
        """Take in clips.

        Raises:
            UserError: the judge has another number of classes than names.
        """
        for name, clips in (("generated", generated), ("reference", reference)):
            clips = self._long_enough(clips, "" if name == "generated" else name)
            known = [clip for clip in clips if clip.labels.get(self.target) in self.classes]
            if name == "generated":
                for clip in clips:
                    if clip.labels.get(self.target) not in self.classes:
                        has = self.target in clip.labels
                        self.num_skipped["class unknown to the judge" if has else f"no label {self.target!r}"] += 1
            if not known:
                continue
            logits = embed_clips(self.judge, known, "logits")
            if logits.shape[1] != len(self.classes):
                raise UserError(f"classes: {len(self.classes)} names for {logits.shape[1]} logits of the judge")
            heard = [self.classes[row.argmax()] if np.isfinite(row).all() else "" for row in logits]
            self._heard[name] += [(clip.id, clip.labels[self.target], said) for clip, said in zip(known, heard)]

    @property
    def heard(self) -> dict[str, str]:
        """Id of a generated clip -> the class that the judge hears; "" where it hears nothing."""
        return {name: said for name, _, said in self._heard["generated"]}

    def compute(self) -> MetricResult:
        heard, real = self._heard["generated"], self._heard["reference"]
        if not heard:
            return self._result(None, 0)
        hits = [wanted == said for _, wanted, said in heard]
        low, high = wilson_interval(sum(hits), len(hits)) or (None, None)
        asked = Counter(wanted for _, wanted, _ in heard)
        confused = Counter((wanted, said) for _, wanted, said in heard if wanted != said)
        right = Counter(wanted for (_, wanted, _), hit in zip(heard, hits) if hit)
        details = {
            "num_reference": len(real),
            "per_class": {name: right[name] / count for name, count in sorted(asked.items())},
            "confused": {f"{wanted} heard as {said or 'nothing'}": n for (wanted, said), n in confused.most_common(5)},
        }
        return self._result(
            sum(hits) / len(hits),
            len(hits),
            floor=max(asked.values()) / len(heard),
            ceiling=float(np.mean([wanted == said for _, wanted, said in real])) if real else None,
            low=low,
            high=high,
            per_item={name: float(hit) for (name, _, _), hit in zip(heard, hits)},
            details=details,
        )


class EditCounts(NamedTuple):
    """How a hypothesis differs from a reference of `num_reference` symbols."""

    substitutions: int
    deletions: int
    insertions: int
    num_reference: int

    @property
    def errors(self) -> int:
        """All three kinds."""
        return self.substitutions + self.deletions + self.insertions


def edit_counts(reference: Sequence[str], hypothesis: Sequence[str]) -> EditCounts:
    """The fewest edits that make `hypothesis` of `reference` (Levenshtein 1966); of ways that are equally short, by
    substitutions first."""
    # cost, then substitutions, deletions, insertions of the best way to each prefix
    row = [(j, 0, 0, j) for j in range(len(hypothesis) + 1)]
    for i, wanted in enumerate(reference, start=1):
        above, row = row, [(i, 0, i, 0)]
        for j, said in enumerate(hypothesis, start=1):
            cost, s, d, n = above[j - 1]
            best = (cost, s, d, n) if wanted == said else (cost + 1, s + 1, d, n)
            if above[j][0] + 1 < best[0]:
                cost, s, d, n = above[j]
                best = (cost + 1, s, d + 1, n)
            if row[j - 1][0] + 1 < best[0]:
                cost, s, d, n = row[j - 1]
                best = (cost + 1, s, d, n + 1)
            row.append(best)
    return EditCounts(*row[-1][1:], len(reference))


def plain_text(text: str) -> str:
    """Lower case, without punctuation other than apostrophes inside of words, single spaces; Unicode's NFKC."""
    text = unicodedata.normalize("NFKC", text).casefold().replace("’", "'")
    kept = "".join(" " if unicodedata.category(c)[0] in "PSZC" and c != "'" else c for c in text)
    return " ".join(filter(None, (word.strip("'") for word in kept.split())))


class Transcriber(Protocol):
    """Anything that writes down what is said."""

    def transcribe(self, waveform: Any, audio_lens: Any, sample_rate: int) -> list[str]:
        """`[B, 1, T]`, `[B]`, Hz to B texts."""
        ...


class WordErrorRate(Metric):
    """Errors of a recogniser on generated speech per word of the text asked for; more than 1 is possible.

    The floor is what the recogniser makes of the reference clips with their own texts.

    Args:
        transcriber: see `Transcriber`.
        unit_of: "word", or "character" (spaces count).
        normalise: of both texts, before they are compared.
        num_draws, seed: of the bootstrap interval, over clips.

    Raises:
        UserError: an unknown unit.
    """

    higher_is_better = False

    def __init__(
        self,
        transcriber: Any,
        unit_of: str = "word",
        normalise: Callable[[str], str] | None = plain_text,
        num_draws: int = 1000,
        seed: int = 0,
    ) -> None:
        if unit_of not in ("word", "character"):
            raise UserError(f"unit_of: expected word or character, got {unit_of!r}")
        self.transcriber, self.unit_of, self.normalise = transcriber, unit_of, normalise
        self.num_draws, self.seed = num_draws, seed
        super().__init__()

    @property
    def needs(self) -> Needs:
        return Needs(text=True, min_seconds=float(getattr(self.transcriber, "min_seconds", 0.0)))

    def reset(self) -> None:
        super().reset()
        self._counts: dict[str, list[tuple[str, EditCounts]]] = {"generated": [], "reference": []}

    def update(
        self, generated: Sequence[Clip] = (), reference: Sequence[Clip] = (), training: Sequence[Clip] = ()
    ) -> None:
        for name, clips in (("generated", generated), ("reference", reference)):
            clips = self._long_enough(clips, "" if name == "generated" else name)
            with_text = [clip for clip in clips if clip.text is not None and self._symbols(clip.text)]
            if name == "generated" and len(with_text) < len(clips):
                self.num_skipped["no text"] += len(clips) - len(with_text)
            for rate in dict.fromkeys(clip.sample_rate for clip in with_text):
                alike = [clip for clip in with_text if clip.sample_rate == rate]
                heard = self.transcriber.transcribe(*pad_clips(alike), rate)
                self._counts[name] += [(clip.id, self.count(clip.text, said)) for clip, said in zip(alike, heard)]

    def count(self, reference: str, hypothesis: str) -> EditCounts:
        """Errors of one text."""
        return edit_counts(self._symbols(reference), self._symbols(hypothesis))

    def _symbols(self, text: str) -> list[str]:
        text = self.normalise(text) if self.normalise else text
        return text.split() if self.unit_of == "word" else list(text)

    def compute(self) -> MetricResult:
        counts, real = self._counts["generated"], self._counts["reference"]
        if not counts:
            return self._result(None, 0)
        table = np.array([(count.errors, count.num_reference) for _, count in counts])
        interval = bootstrap(table, _ratio, self.num_draws, self.seed)
        low, high = interval or (None, None)
        sums = {name: sum(getattr(c, name) for _, c in counts) for name in EditCounts._fields}
        floor = _ratio(np.array([(count.errors, count.num_reference) for _, count in real])) if real else None
        per_item = {name: count.errors / count.num_reference for name, count in counts}
        return self._result(
            _ratio(table), len(counts), floor=floor, low=low, high=high, per_item=per_item, details=sums
        )


def _ratio(table: np.ndarray) -> float:
    errors, words = table.sum(0)
    return float(errors / words)

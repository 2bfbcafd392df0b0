"""Errors of recognisers: word, character and phone error rates, exact over any split of the utterances."""

from __future__ import annotations

import math
import operator
import unicodedata
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, fields
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from components.metrics.intervals import Interval, bootstrap, percentiles
from utils.errors import UserError

Text = str | Sequence[Hashable]

_FEW = 14  # of so many, all ways to deal signs are gone through

UNITS = ("word", "char", "token")
RATE_NAMES = {"word": "wer", "char": "cer", "token": "per"}


@dataclass(frozen=True)
class ErrorCounts:
    """What is needed of any number of utterances for their error rates; sums of such are exact.

    Attributes:
        substitutions, deletions, insertions: of the shortest ways from references to hypotheses.
        num_reference, num_hypothesis: units (words, characters, ...).
        num_wrong, num_items: utterances with any error, and all.
    """

    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0
    num_reference: int = 0
    num_hypothesis: int = 0
    num_wrong: int = 0
    num_items: int = 0

    def __add__(self, other: ErrorCounts) -> ErrorCounts:
        return ErrorCounts(*map(operator.add, self.as_row(), other.as_row()))

    @property
    def errors(self) -> int:
        """All three kinds."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Errors per unit of the references: WER, CER or PER, by the unit; above 1 is possible.

        Where the references are empty, 0 without an insertion and infinite with one.
        """
        return _ratio(self.errors, self.num_reference)

    @property
    def item_rate(self) -> float:
        """Share of utterances with any error (SER); NaN of none."""
        return self.num_wrong / self.num_items if self.num_items else math.nan

    @property
    def length_ratio(self) -> float:
        """Units of the hypotheses per unit of the references: far from 1, something is wrong."""
        return _ratio(self.num_hypothesis, self.num_reference)

    def as_row(self) -> tuple[int, ...]:
        """Seven whole numbers; ranks add up theirs, `ErrorCounts(*sums)` is the count over all."""
        return _fields(self)


_fields = operator.attrgetter(*(entry.name for entry in fields(ErrorCounts)))


def _ratio(part: float, whole: float) -> float:
    if whole:
        return float(part / whole)
    return math.inf if part else 0.0


class Edit(NamedTuple):
    """A step of an alignment; what is not on one side is None.

    Attributes:
        kind: "equal", "substitute", "delete" or "insert".
    """

    kind: str
    reference: Hashable | None
    hypothesis: Hashable | None


def units_of(text: Text, unit: str = "word") -> list[Hashable]:
    """What is counted: words parted by white space, characters (single spaces count, Unicode's NFC), or tokens.

    Args:
        unit: "word"; "char"; or "token" for phones, pieces or ids: a sequence as it is, or a text of such parted by
            spaces.

    Raises:
        UserError: another unit; or a sequence where a text is needed.
    """
    if unit not in UNITS:
        raise UserError(f"unit: {unit!r} is none of {', '.join(UNITS)}")
    if isinstance(text, str):
        text = text if text.isascii() else unicodedata.normalize("NFC", text)
        return list(" ".join(text.split())) if unit == "char" else text.split()
    if unit == "char":
        raise UserError("unit=char: characters are counted of texts, not of lists")
    return list(text)


def item_counts(reference: Sequence[Hashable], hypothesis: Sequence[Hashable]) -> ErrorCounts:
    """Of one utterance, in units; of the shortest ways the one that rapidfuzz (and so jiwer) takes.

    Levenshtein 1966. Other libraries take another way of the same length: compare the sum of errors, not the kinds.
    """
    from rapidfuzz.distance import Levenshtein  # here: it takes longer to import than all of this to run

    num_deleted = num_inserted = 0
    steps = Levenshtein.editops(reference, hypothesis).as_list()
    for kind, _, _ in steps:
        num_deleted += kind == "delete"
        num_inserted += kind == "insert"
    num_replaced = len(steps) - num_deleted - num_inserted
    lengths = len(reference), len(hypothesis)
    return ErrorCounts(num_replaced, num_deleted, num_inserted, *lengths, num_wrong=int(bool(steps)), num_items=1)


def error_counts(references: Iterable[Text], hypotheses: Iterable[Text], unit: str = "word") -> ErrorCounts:
    """Errors over utterances, added up; `.rate` is the corpus's WER, CER or PER and `.item_rate` its SER.

    An empty reference adds what its hypothesis says as insertions. Texts are compared as they are, but for Unicode's
    NFC and white space: normalise both alike before.

    Args:
        references, hypotheses: texts, or sequences of tokens.
        unit: see `units_of`.

    Raises:
        UserError: there are more of one than of the other; see also `units_of`.
    """
    references, hypotheses = list(references), list(hypotheses)
    if len(references) != len(hypotheses):
        raise UserError(f"{len(references)} references, but {len(hypotheses)} hypotheses")
    pairs = zip(references, hypotheses)
    rows = [item_counts(units_of(r, unit), units_of(h, unit)).as_row() for r, h in pairs]
    return ErrorCounts(*map(sum, zip(*rows)))


def align(reference: Sequence[Hashable], hypothesis: Sequence[Hashable]) -> list[Edit]:
    """A shortest way from `reference` to `hypothesis`, unit by unit."""
    from rapidfuzz.distance import Levenshtein

    steps: list[Edit] = []
    for kind, begin, end, other_begin, other_end in Levenshtein.opcodes(reference, hypothesis):
        if kind == "insert":
            steps += [Edit("insert", None, unit) for unit in hypothesis[other_begin:other_end]]
        elif kind == "delete":
            steps += [Edit("delete", unit, None) for unit in reference[begin:end]]
        else:
            kind = "substitute" if kind == "replace" else "equal"
            pairs = zip(reference[begin:end], hypothesis[other_begin:other_end])
            steps += [Edit(kind, wanted, said) for wanted, said in pairs]
    return steps


# ---------------------------------------------------------------------------------------------------------- how sure


def rate_interval(
    counts: Sequence[ErrorCounts],
    groups: Sequence[Hashable] | None = None,
    num_draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval | None:
    """Bootstrap interval of the rate over utterances (Bisani and Ney 2004, ICASSP).

    Args:
        counts: of each utterance.
        groups: of each utterance, say its speaker; whole groups are drawn, as what one speaker says is alike.
        num_draws, seed, level: see `bootstrap`.

    Returns:
        None for fewer than two utterances or groups.
    """
    return bootstrap(_table(counts, groups), _rate_of, num_draws, seed, level)


def _table(counts: Sequence[ErrorCounts], groups: Sequence[Hashable] | None) -> np.ndarray:
    """`[N, 2]`: errors and units of the reference, of each utterance or group."""
    table = np.array([(count.errors, count.num_reference) for count in counts], dtype=np.float64).reshape(-1, 2)
    if groups is None:
        return table
    numbers = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    summed = np.zeros((len(numbers), 2))
    np.add.at(summed, [numbers[group] for group in groups], table)
    return summed


def _rate_of(table: np.ndarray) -> float:
    errors, units = table.sum(0)
    return float(errors / max(units, 1))  # a draw may be of empty references alone


@dataclass(frozen=True)
class PairedComparison:
    """Two systems on the same utterances.

    Attributes:
        rate, other_rate: of each.
        difference: `rate - other_rate`; below 0 the first is better.
        interval: of the difference, by drawing utterances for both at once; None for fewer than two.
        probability_better: share of draws in which the first is better (Bisani and Ney 2004, ICASSP).
        p_value: two-sided, of the matched-pairs test on errors per utterance (Gillick and Cox 1989, ICASSP): how often
            a difference like this comes by chance; of few groups all signs are tried
            (Fisher 1935). None for fewer than two.
        num_better, num_worse, num_items: utterances in which the first has fewer errors, more, and all.
    """

    rate: float
    other_rate: float
    difference: float
    interval: Interval | None
    probability_better: float | None
    p_value: float | None
    num_better: int
    num_worse: int
    num_items: int


def compare(
    counts: Sequence[ErrorCounts],
    others: Sequence[ErrorCounts],
    groups: Sequence[Hashable] | None = None,
    num_draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> PairedComparison:
    """Whether one system is better than another on the same utterances, or only luckier.

    Args:
        counts, others: of each utterance, in the same order.
        groups: as in `rate_interval`.

    Raises:
        UserError: they are not of the same utterances: the references differ in length.
    """
    if [one.num_reference for one in counts] != [other.num_reference for other in others]:
        raise UserError("the two are not of the same utterances: their references differ")
    first, second = _table(counts, groups), _table(others, groups)
    rate, other_rate = _ratio(*first.sum(0)), _ratio(*second.sum(0))
    gains = second[:, 0] - first[:, 0]
    interval = better = None
    if len(first) > 1:
        generator, paired = np.random.default_rng(seed), np.stack([first[:, 0], second[:, 0], first[:, 1]], axis=1)
        picks = (generator.integers(len(paired), size=len(paired)) for _ in range(num_draws))
        sums = np.array([paired[pick].sum(0) for pick in picks])
        differences = (sums[:, 0] - sums[:, 1]) / np.maximum(sums[:, 2], 1)
        interval, better = percentiles(differences, level), float((differences < 0).mean())
    return PairedComparison(
        rate, other_rate, _difference(rate, other_rate), interval, better, _matched_pairs(gains),
        num_better=sum(one.errors < other.errors for one, other in zip(counts, others)),
        num_worse=sum(one.errors > other.errors for one, other in zip(counts, others)),
        num_items=len(counts),
    )  # fmt: skip


def _difference(rate: float, other: float) -> float:
    return 0.0 if rate == other else rate - other


def _matched_pairs(gains: np.ndarray) -> float | None:
    """Two-sided p of gains that are as often losses: by the normal approximation, exactly for a few."""
    if len(gains) < 2:
        return None
    if not gains.any():
        return 1.0
    if len(gains) <= _FEW:
        signs = 1 - 2 * ((np.arange(2 ** len(gains))[:, None] >> np.arange(len(gains))) & 1)
        return float((np.abs(signs @ gains) >= abs(gains.sum())).mean())
    spread = gains.std(ddof=1)
    return 2 * NormalDist().cdf(-abs(float(gains.mean()) / spread * math.sqrt(len(gains)))) if spread else 0.0


# ------------------------------------------------------------------------------------------------------------ collapse

_EMPTY, _SHORT, _LONG, _BLANK, _SAME = 0.05, 0.5, 2.0, 0.97, 0.9


def collapse_warning(
    length_ratio: float,
    blank_share: float | None = None,
    unknown_share: float | None = None,
    frames_per_token: float | None = None,
    most_frequent_share: float | None = None,
) -> str | None:
    """A sentence where a recogniser says nothing, too much, or always the same, with what is likely behind it.

    Args:
        length_ratio: of hypotheses to references over a validation set, `ErrorCounts.length_ratio`.
        blank_share: of all frames, those whose best symbol is the blank; None for heads without one.
        unknown_share: of the tokens of the references, those that the vocabulary lacks.
        frames_per_token: encoder frames per token of the references.
        most_frequent_share: of all utterances (ten at least), those that got the most frequent transcription.

    Returns:
        None where all looks well.
    """
    causes = []
    if unknown_share is not None and unknown_share > 0.1:
        causes.append(f"{unknown_share:.0%} of the references' tokens are unknown to the vocabulary")
    if length_ratio < _SHORT:
        if frames_per_token is not None and frames_per_token < 1.5:
            causes.append(
                f"there are only {frames_per_token:.2g} frames per token: subsample less, or use larger tokens"
            )
        if length_ratio < _EMPTY:
            told = "all blank" if blank_share is not None and blank_share > _BLANK else "almost nothing is recognised"
            causes += [
                "training that is not done yet, a learning rate that is too high or has no warm-up",
                "features that do not vary (silent or wrongly scaled audio, a wrong sample rate)",
                "transcripts that do not belong to the audio",
            ]
        else:
            told = "hypotheses are much too short"
            causes.append("training that is not done yet, or audio that is cut")
    elif length_ratio > _LONG:
        told = "hypotheses are much too long"
        causes.append("repeats that are not collapsed, no end symbol, or references that are cut")
    elif most_frequent_share is not None and most_frequent_share > _SAME:
        told = "nearly all utterances get the same transcription"
        causes.append("a decoder that does not attend to the audio, or an encoder that does not learn yet")
    else:
        return None
    shown = f"{blank_share:.1%} of frames are blank and " if blank_share is not None else ""
    return f"{told}: {shown}hypotheses have {length_ratio:.1%} of the references' length. Likely: {'; '.join(causes)}"

import math
import random

import numpy as np
import pytest

from components.metrics.error_rates import (
    ErrorCounts,
    align,
    collapse_warning,
    compare,
    error_counts,
    item_counts,
    rate_interval,
    units_of,
)
from utils.errors import UserError

WORDS = [f"w{i}" for i in range(30)]


def pairs(number=300, seed=0, wrong=0.2):
    """References and hypotheses in which words were changed, left out and put in."""
    draw = random.Random(seed)
    references, hypotheses = [], []
    for _ in range(number):
        words = draw.choices(WORDS, k=draw.randint(1, 12))
        said = []
        for word in words:
            lot = draw.random()
            said += [] if lot < wrong / 3 else [draw.choice(WORDS)] if lot < 2 * wrong / 3 else [word]
            said += [draw.choice(WORDS)] if draw.random() < wrong / 3 else []
        references.append(" ".join(words))
        hypotheses.append(" ".join(said))
    return references, hypotheses


def brute_force(reference, hypothesis):
    """Levenshtein's distance, by its definition."""
    row = list(range(len(hypothesis) + 1))
    for i, wanted in enumerate(reference, start=1):
        above, row = row, [i]
        for j, said in enumerate(hypothesis, start=1):
            row.append(min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (wanted != said)))
    return row[-1]


def test_totals_are_jiwers():
    references, hypotheses = pairs()
    words, characters = error_counts(references, hypotheses), error_counts(references, hypotheses, "char")
    assert words.errors == sum(brute_force(r.split(), h.split()) for r, h in zip(references, hypotheses))
    jiwer = pytest.importorskip("jiwer")
    theirs = jiwer.process_words(references, hypotheses)
    assert words.errors == theirs.substitutions + theirs.deletions + theirs.insertions
    assert words.rate == pytest.approx(theirs.wer, abs=1e-12)
    assert characters.rate == pytest.approx(jiwer.cer(references, hypotheses), abs=1e-12)


@pytest.mark.slow
def test_totals_are_torchmetrics():
    text = pytest.importorskip("torchmetrics.functional.text")
    references, hypotheses = pairs()
    words, characters = error_counts(references, hypotheses), error_counts(references, hypotheses, "char")
    assert words.rate == pytest.approx(float(text.word_error_rate(hypotheses, references)), rel=1e-6)
    assert characters.rate == pytest.approx(float(text.char_error_rate(hypotheses, references)), rel=1e-6)


def test_totals_are_kaldialigns_too():
    kaldialign = pytest.importorskip("kaldialign")
    references, hypotheses = pairs(seed=1)
    theirs = sum(kaldialign.edit_distance(r.split(), h.split())["total"] for r, h in zip(references, hypotheses))
    assert error_counts(references, hypotheses).errors == theirs


def test_an_alignment_is_a_shortest_way_from_one_to_the_other():
    for reference, hypothesis in zip(*pairs(100, seed=2)):
        wanted, said = reference.split(), hypothesis.split()
        steps = align(wanted, said)
        assert [step.reference for step in steps if step.reference is not None] == wanted
        assert [step.hypothesis for step in steps if step.hypothesis is not None] == said
        assert all((step.kind == "equal") == (step.reference == step.hypothesis) for step in steps)
        kinds = [step.kind for step in steps]
        counts = item_counts(wanted, said)
        found = (kinds.count("substitute"), kinds.count("delete"), kinds.count("insert"))
        assert found == (counts.substitutions, counts.deletions, counts.insertions)
        assert counts.errors == brute_force(wanted, said)


def test_counts_by_kind():
    assert item_counts("abc", "axcd").as_row() == (1, 0, 1, 3, 4, 1, 1)
    assert item_counts("ab", "").as_row() == (0, 2, 0, 2, 0, 1, 1)
    assert item_counts([1, 2, 3], [1, 2, 3]).as_row() == (0, 0, 0, 3, 3, 0, 1)


def test_any_split_of_the_utterances_gives_the_same():
    references, hypotheses = pairs()
    whole = error_counts(references, hypotheses)
    parts = [error_counts(references[i::3], hypotheses[i::3]) for i in range(3)]
    assert sum(parts, ErrorCounts()) == whole
    assert ErrorCounts(*np.sum([part.as_row() for part in parts], axis=0).tolist()) == whole
    assert whole.num_items == 300
    assert whole.item_rate == sum(r != h for r, h in zip(references, hypotheses)) / 300


def test_an_empty_reference_counts_what_is_said_as_insertions():
    counts = error_counts(["a b c", "", ""], ["a b c", "oh no", ""])
    assert (counts.insertions, counts.num_reference, counts.num_wrong) == (2, 3, 1)
    assert counts.rate == pytest.approx(2 / 3)
    assert error_counts([""], [""]).rate == 0
    assert error_counts([""], ["a"]).rate == math.inf
    assert error_counts([], []).rate == 0
    assert math.isnan(error_counts([], []).item_rate)


def test_the_same_letter_is_the_same_however_it_was_typed():
    assert error_counts(["caf\u00e9"], ["cafe\u0301"], "char").errors == 0
    assert error_counts(["caf\u00e9"], ["cafe\u0301"], "word").errors == 0


def test_units():
    assert units_of("a  bc ", "word") == ["a", "bc"]
    assert units_of(" a  bc ", "char") == ["a", " ", "b", "c"]
    assert units_of("tʃ iː", "token") == units_of(["tʃ", "iː"], "token") == ["tʃ", "iː"]
    assert error_counts([[4, 5, 6]], [[4, 6]], "token").deletions == 1
    with pytest.raises(UserError, match="'phone' is none of word, char, token"):
        units_of("a", "phone")
    with pytest.raises(UserError, match="characters are counted of texts"):
        units_of(["a"], "char")
    with pytest.raises(UserError, match="2 references, but 1 hypotheses"):
        error_counts(["a", "b"], ["a"])


# ---------------------------------------------------------------------------------------------------------- how sure


def counts_of(references, hypotheses):
    return [item_counts(r.split(), h.split()) for r, h in zip(references, hypotheses)]


def test_the_interval_holds_the_rate_and_is_kaldialigns():
    references, hypotheses = pairs(600, seed=3)
    counts = counts_of(references, hypotheses)
    low, high = rate_interval(counts)
    assert low < sum(counts, ErrorCounts()).rate < high
    assert rate_interval(counts) == (low, high)
    assert rate_interval(counts[:1]) is None
    kaldialign = pytest.importorskip("kaldialign")
    theirs = kaldialign.bootstrap_wer_ci([r.split() for r in references], [h.split() for h in hypotheses])
    assert (low, high) == pytest.approx((theirs["ci95min"], theirs["ci95max"]), abs=2e-3)


def test_intervals_cover_the_truth_as_often_as_they_say():
    draw, hits = np.random.default_rng(0), 0
    for trial in range(100):
        wrong = draw.random(150) < 0.2
        counts = [ErrorCounts(int(w), 0, 0, 1, 1, int(w), 1) for w in wrong]
        low, high = rate_interval(counts, num_draws=200, seed=trial)
        hits += low <= 0.2 <= high
    assert 85 <= hits <= 100


def test_groups_that_err_alike_make_the_interval_wider():
    """One in three speakers is never understood: what is known is known of speakers."""
    speakers = [f"s{i // 20}" for i in range(300)]
    counts = [ErrorCounts(5 * (i // 20 % 3 == 0), 0, 0, 5, 5, int(i // 20 % 3 == 0), 1) for i in range(300)]
    alone, together = rate_interval(counts), rate_interval(counts, speakers)
    assert together.high - together.low > 2 * (alone.high - alone.low)


def test_a_better_system_is_told_from_a_luckier_one():
    references, _ = pairs(400, seed=4)
    rng = random.Random(0)

    def heard(share):
        return [" ".join(w if rng.random() > share else "x" for w in r.split()) for r in references]

    first, second, third = (counts_of(references, heard(share)) for share in (0.10, 0.10, 0.20))
    chance, real = compare(first, second), compare(first, third)
    assert chance.p_value > 0.05
    assert chance.interval.low < 0 < chance.interval.high
    assert real.p_value < 1e-6
    assert real.difference < 0
    assert real.interval.high < 0
    assert real.probability_better == 1.0
    assert real.num_items == 400
    assert real.num_better > 2 * real.num_worse
    assert real.difference == pytest.approx(real.rate - real.other_rate)
    mirrored = compare(third, first)
    assert (mirrored.p_value, mirrored.num_better) == (real.p_value, real.num_worse)
    itself = compare(first, first)
    assert (itself.difference, itself.p_value, itself.num_better) == (0.0, 1.0, 0)
    with pytest.raises(UserError, match="not of the same utterances"):
        compare(first, first[1:])


def test_the_matched_pairs_test_is_scipys():
    stats = pytest.importorskip("scipy.stats")
    references, hypotheses = pairs(400, seed=5)
    first, second = counts_of(references, hypotheses), counts_of(references, references)
    gains = np.array([one.errors for one in first])
    expected = 2 * stats.norm.sf(gains.mean() / gains.std(ddof=1) * math.sqrt(len(gains)))
    assert compare(first, second).p_value == pytest.approx(expected)
    few = [ErrorCounts(errors, 0, 0, 10, 10, 1, 1) for errors in (3, 1, 4, 2, 5, 0)]
    none = [ErrorCounts(errors, 0, 0, 10, 10, 1, 1) for errors in (2, 2, 1, 1, 1, 2)]
    differences = np.array([one.errors - other.errors for one, other in zip(few, none)])
    exact = stats.permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert compare(few, none).p_value == pytest.approx(exact.pvalue)


def test_a_test_by_chance_is_by_chance():
    """Where two systems are alike, a p-value below 0.1 comes in a tenth of all cases."""
    rng, low = np.random.default_rng(0), 0
    for _ in range(200):
        first, second = ([ErrorCounts(int(e), 0, 0, 5, 5, 1, 1) for e in rng.binomial(5, 0.2, 60)] for _ in range(2))
        low += compare(first, second, num_draws=2).p_value < 0.1
    assert 8 <= low <= 34


# ------------------------------------------------------------------------------------------------------------ collapse


def test_a_recogniser_that_says_nothing_is_told_with_what_is_behind_it():
    told = collapse_warning(0.003, blank_share=0.998)
    assert told.startswith("all blank: 99.8% of frames are blank and hypotheses have 0.3% of the references' length.")
    assert "learning rate" in told
    assert collapse_warning(0.0).startswith("almost nothing is recognised")
    assert "only 0.8 frames per token" in collapse_warning(0.0, 1.0, frames_per_token=0.8)
    assert "frames per token" not in collapse_warning(0.0, 1.0, frames_per_token=12)
    assert "60% of the references' tokens are unknown" in collapse_warning(0.0, unknown_share=0.6)


@pytest.mark.parametrize(
    ("ratio", "share", "told"),
    [
        (0.3, None, "much too short"),
        (3.0, None, "much too long"),
        (math.inf, None, "much too long"),
        (1.0, 0.95, "same"),
    ],
)
def test_other_ways_to_fail(ratio, share, told):
    assert told in collapse_warning(ratio, most_frequent_share=share)


def test_a_recogniser_that_works_is_left_in_peace():
    assert collapse_warning(0.97, blank_share=0.99, unknown_share=0.01, most_frequent_share=0.1) is None

import random

import numpy as np
import pytest

from components.metrics import (
    ClapScore,
    ClassifierAccuracy,
    EmbeddingSimilarity,
    SpeakerSimilarity,
    WordErrorRate,
    edit_counts,
    plain_text,
    wilson_interval,
)
from tests.components.metric_clips import Samples, carrying, tone
from utils.errors import UserError

CLASSES = ("no", "yes", "maybe")


def asked(words, heard, prefix="", **more):
    """Clips in which the judge hears `heard` where `words` were asked for."""
    vectors = np.eye(3)[[CLASSES.index(word) for word in heard]]
    return carrying(vectors, prefix, labels=[{"word": word, **more} for word in words])


def test_accuracy_has_wilsons_interval_and_the_real_clips_as_its_ceiling():
    metric = ClassifierAccuracy(Samples(), "word")
    metric.update(asked(["no", "yes", "maybe", "no"], ["no", "yes", "yes", "no"]))
    metric.update(reference=asked(["no", "yes"], ["no", "maybe"]))
    result = metric.compute()
    assert (result.value, result.num_used, result.floor, result.ceiling) == (0.75, 4, 0.5, 0.5)
    assert (result.low, result.high) == wilson_interval(3, 4)
    assert result.details["per_class"] == {"maybe": 0.0, "no": 1.0, "yes": 1.0}
    assert result.details["confused"] == {"maybe heard as yes": 1}
    assert result.per_item == {"0": 1.0, "1": 1.0, "2": 0.0, "3": 1.0}


def test_clips_that_the_judge_can_not_judge_are_counted():
    metric = ClassifierAccuracy(Samples(), "word")
    clips = asked(["no"], ["no"]) + carrying(np.eye(3), labels=[{"word": "perhaps"}, {}, {"speaker": "x"}])
    metric.update(clips)
    result = metric.compute()
    assert (result.value, result.num_used) == (1.0, 1)
    assert result.num_skipped == {"class unknown to the judge": 1, "no label 'word'": 2}


def test_a_judge_whose_classes_are_not_known_or_do_not_fit_is_refused():
    with pytest.raises(UserError, match="object does not name its classes"):
        ClassifierAccuracy(object(), "word")
    metric = ClassifierAccuracy(Samples(), "word", classes=["no", "yes"])
    with pytest.raises(UserError, match="2 names for 3 logits"):
        metric.update(asked(["no"], ["no"]))


def test_clap_score_is_a_cosine_with_others_texts_as_its_floor():
    sounds = np.array([[1.0, 0, 0], [0, 2, 0], [0, 0, 1]])
    texts = ["1 0 0", "0 1 1", "0 0 3"]
    metric = ClapScore(Samples())
    metric.update(carrying(sounds, texts=texts), carrying(sounds[:1], texts=["1 1 0"]))
    metric.update(carrying(sounds[:1], prefix="silent"))
    result = metric.compute()
    assert list(result.per_item.values()) == pytest.approx([1, 2**-0.5, 1])
    assert result.value == pytest.approx((2 + 2**-0.5) / 3)
    assert result.floor == pytest.approx(2**-0.5 / 6)
    assert result.ceiling == pytest.approx(2**-0.5)
    assert result.num_skipped == {"no text": 1}


def test_clap_score_wants_something_that_embeds_texts():
    with pytest.raises(UserError, match="text_embedder: object has no embed_text"):
        ClapScore(object())


def test_similarity_to_the_reference_stands_beside_that_to_others():
    generator = np.random.default_rng(0)
    real = generator.normal(loc=(5, 0, 0), size=(20, 3))  # nearly parallel, as many embeddings are
    metric = EmbeddingSimilarity(Samples())
    metric.update(carrying(1.01 * real), carrying(real))
    result = metric.compute()
    unit = real / np.linalg.norm(real, axis=1, keepdims=True)
    others = (unit @ unit.T)[~np.eye(20, dtype=bool)].mean()
    assert result.value == pytest.approx(1, abs=1e-6)
    assert result.floor == pytest.approx(others, abs=1e-6)
    assert result.floor > 0.8


def test_speaker_similarity_is_to_the_mean_of_the_speakers_real_clips():
    real = np.array([[1.0, 0, 0], [0.8, 0.6, 0], [0, 0, 1], [0, 0.6, 0.8]])
    speakers = [{"speaker": name} for name in ("ann", "ann", "ben", "ben")]
    generated = carrying([[1.0, 0, 0], [0, 0, 1], [1, 1, 1]], labels=[{"speaker": n} for n in ("ann", "ann", "cyd")])
    metric = SpeakerSimilarity(Samples())
    metric.update(generated, carrying(real, labels=speakers))
    result = metric.compute()
    ann = (real[0] + real[1]) / np.linalg.norm(real[0] + real[1])
    ben = (real[2] + real[3]) / np.linalg.norm(real[2] + real[3])
    assert result.value == pytest.approx((ann[0] + ann[2]) / 2, abs=1e-6)
    assert result.floor == pytest.approx((ben[0] + ben[2]) / 2, abs=1e-6)
    assert result.ceiling == pytest.approx(0.8)  # each to the other of its speaker
    assert result.num_skipped == {"no real clip of the speaker": 1}
    assert result.details["nearest_is_right"] == 0.5


def test_edit_counts_are_jiwers():
    jiwer = pytest.importorskip("jiwer")
    draw = random.Random(0)
    for _ in range(60):
        reference = [draw.choice("abcd") for _ in range(draw.randint(1, 8))]
        hypothesis = [draw.choice("abcd") for _ in range(draw.randint(1, 8))]
        counts = edit_counts(reference, hypothesis)
        theirs = jiwer.process_words(" ".join(reference), " ".join(hypothesis))
        assert counts.errors / counts.num_reference == pytest.approx(theirs.wer)
        assert counts.insertions - counts.deletions == len(hypothesis) - len(reference)


def test_edit_counts_by_kind():
    assert edit_counts("abc", "axcd") == (1, 0, 1, 3)
    assert edit_counts("ab", "") == (0, 2, 0, 2)


class Parrot:
    """Says what it is told for a clip's length in samples."""

    def __init__(self, said):
        self.said = said

    def transcribe(self, waveform, audio_lens, sample_rate):
        return [self.said[int(length)] for length in audio_lens]


def test_word_error_rate_is_jiwers_over_all_clips_with_the_real_ones_as_its_floor():
    jiwer = pytest.importorskip("jiwer")
    texts = ["one two three", "Four, five!", "six"]
    heard = ["one too three", "four", "six seven eight"]
    clips = [tone(str(i), seconds=0.1 + i / 100, text=text) for i, text in enumerate(texts)]
    parrot = Parrot({len(clip.samples): said for clip, said in zip(clips, heard)})
    metric = WordErrorRate(parrot)
    metric.update(clips, clips[:1])
    metric.update([tone("untold")])
    result = metric.compute()
    assert result.value == pytest.approx(jiwer.wer([plain_text(text) for text in texts], heard))
    assert result.floor == pytest.approx(1 / 3)
    assert result.num_skipped == {"no text": 1}
    assert {key: result.details[key] for key in ("substitutions", "deletions", "insertions")} == {
        "substitutions": 1,
        "deletions": 1,
        "insertions": 2,
    }
    letters = WordErrorRate(parrot, unit_of="character")
    letters.update(clips)
    assert letters.compute().value == pytest.approx(jiwer.cer([plain_text(text) for text in texts], heard))


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("Don't  STOP – now!", "don't stop now"),
        ("‘Hi’, she said…", "hi she said"),
        ("Ünïcode ＡＢＣ\u00a0x", "ünïcode abc x"),
        ("' '", ""),
    ],
)
def test_plain_text(text, plain):
    assert plain_text(text) == plain

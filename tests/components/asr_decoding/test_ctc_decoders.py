import itertools
from types import SimpleNamespace

import pytest
import torch

from components.decoding import CtcGreedy, CtcPrefixBeam, greedy
from components.models.asr.types import Encoded
from components.text import CharTokenizer
from tests.components.asr_decoding.oracles import collapse
from utils.errors import UserError


def peaks(path, vocab_size, sure=0.9):
    """Log-probabilities of a path, `[T, V]`, each frame's token with probability `sure`."""
    probs = torch.full((len(path), vocab_size), (1 - sure) / (vocab_size - 1))
    probs[range(len(path)), path] = sure
    return probs.log()


def flat(times):
    return [edge for span in times for edge in span]


class Model:
    """A CTC head that gives what it is told to, with frames of 40 ms."""

    frame_seconds = 0.04

    def __init__(self, log_probs):
        self.heads = {"ctc": SimpleNamespace(log_probs=lambda encoded: log_probs)}


def decode(decoder, log_probs, lens):
    return decoder(Model(log_probs), Encoded(log_probs, torch.tensor(lens)))


def test_greedy_takes_the_best_path_with_times_and_confidences():
    log_probs = torch.stack([peaks([0, 5, 5, 0, 5, 6, 6, 0], 8), peaks([7, 7, 4, 0, 4, 0, 0, 0], 8, 0.6)])
    first, second = greedy(log_probs, torch.tensor([8, 3]), frame_seconds=0.04)
    assert first.tokens == [5, 5, 6]
    assert flat(first.times) == pytest.approx([0.04, 0.12, 0.16, 0.20, 0.20, 0.28])
    assert first.confidences == pytest.approx([0.9] * 3, abs=1e-6)
    assert second.tokens == [7, 4]
    assert flat(second.times) == pytest.approx([0.0, 0.08, 0.08, 0.12])
    assert second.score == pytest.approx(float(log_probs[1, :3].max(1).values.sum()), abs=1e-5)


def test_greedy_collapses_random_paths_and_hears_nothing_in_no_frames():
    log_probs, lens = torch.randn(9, 40, 5).log_softmax(2), torch.tensor([40, 3, 0, 17, 1, 22, 40, 8, 39])
    for one, frames, length in zip(greedy(log_probs, lens), log_probs, lens.tolist()):
        assert tuple(one.tokens) == collapse(frames[:length].argmax(1).tolist())
        assert len(one.times) == len(one.confidences) == len(one.tokens)
    assert greedy(torch.zeros(1, 0, 5), torch.tensor([0]))[0].tokens == []


def test_the_decoders_never_say_begin_or_end():
    log_probs = torch.stack([peaks([2, 0, 4, 4, 3, 0], 6, 0.8)])
    for decoder in (CtcGreedy(), CtcPrefixBeam(beam_size=3)):
        best = decode(decoder, log_probs, [6])[0][0]
        assert not {0, 2, 3}.intersection(best.tokens)
        assert 4 in best.tokens


def test_the_first_hypotheses_have_the_times_of_their_best_paths():
    log_probs = torch.stack([peaks([0, 5, 5, 0, 5, 6, 6, 0], 8), peaks([7, 7, 4, 0, 4, 0, 0, 0], 8, 0.6)])
    found = decode(CtcPrefixBeam(beam_size=4, timed=2), log_probs, [8, 3])
    assert found[0][0].tokens == [5, 5, 6]
    assert flat(found[0][0].times) == pytest.approx([0.04, 0.12, 0.16, 0.20, 0.20, 0.28])
    assert found[0][0].confidences == pytest.approx([0.9] * 3, abs=1e-6)
    assert [one.times is not None for one in found[1]] == [True, True, False, False]
    assert [len(one.times) for one in found[1][:2]] == [len(one.tokens) for one in found[1][:2]]


def test_a_bonus_for_tokens_makes_more_of_them():
    log_probs = torch.randn(6, 30, 12, generator=torch.Generator().manual_seed(0)).log_softmax(2)
    lengths = [
        sum(len(utterance[0].tokens) for utterance in decode(CtcPrefixBeam(insertion_bonus=bonus), log_probs, [30] * 6))
        for bonus in (-3.0, 0.0, 3.0)
    ]
    assert lengths[0] < lengths[1] < lengths[2]


def test_hotwords_and_word_bonus_are_asked_for_by_arguments(tmp_path):
    tokenizer = CharTokenizer("abc ")
    (tmp_path / "words.txt").write_text("ab c\n\nb\n", encoding="utf-8")
    log_probs = torch.randn(2, 25, 8, generator=torch.Generator().manual_seed(0)).log_softmax(2)
    decoder = CtcPrefixBeam(
        tokenizer=tokenizer, hotwords=str(tmp_path / "words.txt"), hotword_weight=4.0, word_bonus=0.5
    )
    for utterance in decode(decoder, log_probs, [25, 12]):
        assert {*utterance[0].scores} == {"ctc", "hotwords", "word_insertion"}
        for one in utterance:
            words = tokenizer.decode(one.tokens).split()
            said = sum(word == "b" for word in words) + 3 * sum(
                pair == ("ab", "c") for pair in itertools.pairwise(words)
            )
            assert one.scores["hotwords"] == pytest.approx(4.0 * said, abs=1e-4)
            assert one.scores["word_insertion"] == pytest.approx(0.5 * len(words), abs=1e-4)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"hotwords": ["a"]}, "decoder.hotwords needs decoder.tokenizer"),
        ({"word_lm": "lm.arpa"}, "decoder.word_lm needs"),
        ({"beam_size": 0}, "beam_size is 0"),
        ({"hotwords": "/no/such/file", "tokenizer": CharTokenizer("ab ")}, "can not read"),
        ({"hotwords": ["xyz"], "tokenizer": CharTokenizer("ab ")}, "'xyz' has symbols that the tokenizer lacks"),
        ({"hotwords": {"ab": -1.0}, "tokenizer": CharTokenizer("ab ")}, "must be above 0"),
    ],
)
def test_what_can_not_be_decoded_with_is_told(arguments, told):
    with pytest.raises(UserError, match=told):
        CtcPrefixBeam(**arguments)

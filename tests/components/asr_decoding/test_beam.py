import itertools

import pytest
import torch

from components.decoding import SumOfScorers, TokenInsertion, position_beam, prefix_beam_search
from tests.components.asr_decoding.oracles import all_sequences, dictionary_beam
from utils.errors import UserError


def draw(*shape, seed=0, sharpness=2.0):
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * sharpness).log_softmax(-1)


class Favour:
    """A bonus for one token behind another, `late` for each of those before, a penalty if the last is no such one."""

    name = "favour"

    def __init__(self, first, second, bonus, late=0.0):
        self.first, self.second, self.bonus, self.late = first, second, bonus, late

    def start(self, batch, device):
        return torch.zeros(batch, 1, 1, dtype=torch.int64, device=device)

    def extend(self, state, candidates):
        return self.bonus * ((state == self.first) & (candidates.unsqueeze(1) == self.second))

    def advance(self, state, tokens):
        tokens = tokens.unsqueeze(2)
        return torch.where(tokens < 0, state, tokens), torch.where(tokens[..., 0] == self.first, self.late, 0.0)

    def finish(self, state):
        return torch.where(state[..., 0] == self.second, 0.0, -0.5)

    def of(self, tokens, ended=True):
        pairs = sum(pair == (self.first, self.second) for pair in itertools.pairwise(tokens))
        end = 0.0 if tokens and tokens[-1] == self.second else -0.5
        return self.bonus * pairs + self.late * sum(token == self.first for token in tokens) + end * ended


@pytest.mark.parametrize("seed", range(6))
def test_a_wide_beam_finds_every_sequence_with_its_probability_over_all_paths(seed):
    lens = torch.tensor([6, 3, 0, 5, 1])
    log_probs = draw(5, 6, 4, seed=seed)
    found = prefix_beam_search(log_probs, lens, beam_size=400)
    for utterance, frames, length in zip(found, log_probs, lens.tolist()):
        expected = all_sequences(frames, length)
        assert {tuple(one.tokens) for one in utterance} == set(expected)
        assert [one.score for one in utterance] == sorted((one.score for one in utterance), reverse=True)
        for one in utterance:
            assert one.score == pytest.approx(expected[tuple(one.tokens)], abs=1e-5)
            assert one.scores == {"ctc": one.score}


@pytest.mark.parametrize(("size", "seed"), [(1, 0), (2, 1), (5, 2), (10, 3), (10, 4), (30, 5)])
def test_a_narrow_beam_keeps_what_a_dictionary_of_prefixes_keeps(size, seed):
    log_probs = draw(3, 25, 12, seed=seed).double()
    for utterance, frames in zip(prefix_beam_search(log_probs, torch.full((3,), 25), size), log_probs):
        expected = dictionary_beam(frames, size)
        assert [tuple(one.tokens) for one in utterance] == [tokens for tokens, _ in expected]
        assert [one.score for one in utterance] == pytest.approx([score for _, score in expected], abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_a_scorer_decides_with_the_frames_about_what_is_kept(seed):
    log_probs, favour = draw(2, 20, 8, seed=seed).double(), Favour(3, 5, 2.5)
    scorer = SumOfScorers([TokenInsertion(0.7), favour])
    found = prefix_beam_search(log_probs, torch.full((2,), 20), 6, scorer=scorer)
    for utterance, frames in zip(found, log_probs):
        kept = dictionary_beam(frames, 6, lambda tokens: 0.7 * len(tokens) + favour.of(tokens, ended=False))
        expected = {tokens: score + 0.7 * len(tokens) + favour.of(tokens) for tokens, score in kept}
        assert {tuple(one.tokens) for one in utterance} == set(expected)
        for one in utterance:
            assert one.score == pytest.approx(expected[tuple(one.tokens)], abs=1e-5)
            assert one.scores["insertion"] == pytest.approx(0.7 * len(one.tokens), abs=1e-5)
            assert one.scores["favour"] == pytest.approx(favour.of(tuple(one.tokens)), abs=1e-5)
            assert sum(one.scores.values()) == pytest.approx(one.score, abs=1e-5)
        assert max(expected, key=expected.get) == tuple(utterance[0].tokens)


def test_with_a_scorer_a_wide_beam_is_exact():
    log_probs, favour = draw(3, 5, 4), Favour(1, 3, 1.5, late=-0.75)
    found = prefix_beam_search(log_probs, torch.tensor([5, 2, 0]), 160, scorer=SumOfScorers([favour]))
    for utterance, frames, length in zip(found, log_probs, (5, 2, 0)):
        expected = {tokens: score + favour.of(tokens) for tokens, score in all_sequences(frames, length).items()}
        assert {tuple(one.tokens): pytest.approx(one.score, abs=1e-5) for one in utterance} == expected


def test_garbage_in_the_padding_and_neighbours_in_the_batch_change_nothing():
    log_probs, lens = draw(4, 30, 9), torch.tensor([30, 7, 19, 2])
    together = prefix_beam_search(log_probs, lens, 5)
    for row, length in enumerate(lens.tolist()):
        log_probs[row, length:] = torch.randn(30 - length, 9) * 50
        alone = prefix_beam_search(log_probs[row : row + 1, :length], lens[row : row + 1], 5)[0]
        assert [one.tokens for one in alone] == [one.tokens for one in together[row]]
        assert [one.score for one in alone] == pytest.approx([one.score for one in together[row]], abs=1e-4)
    again = prefix_beam_search(log_probs, lens, 5)
    assert [[one.tokens for one in utterance] for utterance in again] == [
        [one.tokens for one in utterance] for utterance in together
    ]


def test_few_tokens_of_a_frame_are_enough_where_the_others_are_improbable():
    log_probs = draw(2, 40, 50, sharpness=6.0)
    every = SumOfScorers([TokenInsertion(0.0)])  # looks at all tokens
    full = prefix_beam_search(log_probs, torch.tensor([40, 33]), 4, scorer=every)
    for few in (None, 12):
        pruned = prefix_beam_search(log_probs, torch.tensor([40, 33]), 4, few)
        assert [one.tokens for one in pruned[1]] == [one.tokens for one in full[1]]
        assert [one.score for one in pruned[0]] == pytest.approx([one.score for one in full[0]], abs=1e-4)


def test_the_blank_may_be_any_token_and_n_best_cuts_the_list():
    log_probs = draw(2, 8, 5)
    moved = log_probs[..., [1, 2, 3, 4, 0]]
    first = prefix_beam_search(log_probs, torch.tensor([8, 5]), 20)
    last = prefix_beam_search(moved, torch.tensor([8, 5]), 20, n_best=3, blank_id=4)
    assert [len(utterance) for utterance in last] == [3, 3]
    for utterance, others in zip(last, first):
        assert [[token + 1 for token in one.tokens] for one in utterance] == [one.tokens for one in others[:3]]


def test_an_impossible_token_is_in_no_hypothesis_and_nothing_that_is_no_number_is_decoded():
    log_probs = draw(1, 6, 4)
    log_probs[..., 2] = -torch.inf
    found = prefix_beam_search(log_probs, torch.tensor([6]), 200)[0]
    expected = {tokens for tokens, score in all_sequences(log_probs[0], 6).items() if score > -torch.inf}
    assert {tuple(one.tokens) for one in found} == expected
    log_probs[0, 3, 1] = torch.nan
    with pytest.raises(UserError, match="not all numbers"):
        prefix_beam_search(log_probs, torch.tensor([6]), 2)
    assert prefix_beam_search(log_probs, torch.tensor([3]), 2)  # beyond the end it is not read


@pytest.mark.parametrize("with_scorer", [False, True])
def test_positions_without_blank_are_searched_exactly(with_scorer):
    log_probs, lens = draw(3, 4, 4), torch.tensor([4, 2, 0])
    favour = Favour(1, 2, 1.5, late=-0.25)
    scorer = SumOfScorers([favour]) if with_scorer else None
    found = position_beam(log_probs, lens, beam_size=256, scorer=scorer, forbidden_ids=[0])
    for utterance, frames, length in zip(found, log_probs, lens.tolist()):
        expected = {
            tokens: sum(float(frames[at, token]) for at, token in enumerate(tokens))
            + (favour.of(tokens) if with_scorer else 0.0)
            for tokens in itertools.product(range(1, 4), repeat=length)
        }
        assert {tuple(one.tokens): pytest.approx(one.score, abs=1e-5) for one in utterance} == expected
        assert tuple(utterance[0].tokens) == max(expected, key=expected.get)


def test_without_a_scorer_the_best_of_each_position_comes_first():
    log_probs, lens = draw(4, 12, 20), torch.tensor([12, 5, 9, 1])
    for utterance, frames, length in zip(position_beam(log_probs, lens, 3), log_probs, lens.tolist()):
        assert utterance[0].tokens == frames[:length].argmax(1).tolist()

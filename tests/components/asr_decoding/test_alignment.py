import itertools

import pytest
import torch
import torchaudio

from components.decoding import align, pad_tokens
from tests.components.asr_decoding.oracles import best_path
from utils.errors import UserError


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).mul(2).log_softmax(-1)


def test_the_path_is_the_best_of_all_paths():
    log_probs = draw(6, 6, 4)
    lens = torch.tensor([6, 5, 6, 4, 1, 6])
    sequences = [[1, 2], [3, 3], [2, 1, 1], [], [1], [1, 2, 3, 1, 2, 3]]
    tokens, token_lens = pad_tokens(sequences)
    alignment = align(log_probs, lens, tokens, token_lens)
    assert bool(alignment.feasible.all())
    for row, sequence in enumerate(sequences):
        score, path = best_path(log_probs[row], int(lens[row]), sequence)
        assert float(alignment.score[row]) == pytest.approx(score, abs=1e-5)
        written = [0] * int(lens[row])
        for token, (begin, end), sure in zip(sequence, alignment.spans[row].tolist(), alignment.confidences[row]):
            written[begin:end] = [token] * (end - begin)
            assert float(sure) == pytest.approx(float(log_probs[row, begin:end, token].exp().mean()), abs=1e-6)
        assert tuple(written) == path
        assert alignment.spans[row, len(sequence) :].eq(-1).all()


@pytest.mark.parametrize("seed", range(5))
def test_the_path_is_that_of_torchaudio(seed):
    generator = torch.Generator().manual_seed(seed)
    log_probs, lens = draw(5, 60, 9, seed=seed), torch.tensor([60, 35, 48, 21, 57])
    sequences = [torch.randint(1, 9, (count,), generator=generator).tolist() for count in (20, 1, 15, 10, 25)]
    tokens, token_lens = pad_tokens(sequences)
    alignment = align(log_probs, lens, tokens, token_lens)
    for row, sequence in enumerate(sequences):
        length = int(lens[row])
        path, scores = torchaudio.functional.forced_align(log_probs[row : row + 1, :length], torch.tensor([sequence]))
        spans = torchaudio.functional.merge_tokens(path[0], scores[0].exp())
        assert alignment.spans[row, : len(sequence)].tolist() == [[span.start, span.end] for span in spans]
        assert float(alignment.score[row]) == pytest.approx(float(scores.sum()), abs=1e-3)
        assert alignment.confidences[row, : len(sequence)].tolist() == pytest.approx(
            [span.score for span in spans], abs=1e-5
        )


def test_what_does_not_fit_is_none_and_leaves_the_others_alone():
    log_probs, lens = draw(3, 5, 4), torch.tensor([3, 5, 2])
    tokens, token_lens = pad_tokens([[1, 1], [1, 2, 3], [2, 2]])  # [2, 2] needs three frames
    alignment = align(log_probs, lens, tokens, token_lens)
    assert alignment.feasible.tolist() == [True, True, False]
    assert alignment.spans[2].eq(-1).all()
    assert alignment.score[2] == -torch.inf
    times = alignment.times(token_lens, 0.04)
    assert times[2] is None
    assert [len(spans) for spans in times[:2]] == [2, 3]
    assert times[0][0] == pytest.approx((0.0, 0.04))
    with pytest.raises(UserError, match="2 tokens of utterance 2 do not fit into 2 frames"):
        align(log_probs, lens, tokens, token_lens, strict=True)


def test_a_frame_more_than_tokens_and_repeats_is_feasible_and_one_less_is_not():
    for sequence in ([1], [1, 1], [1, 2, 2, 2], [3, 1, 1, 3]):
        need = len(sequence) + sum(one == other for one, other in itertools.pairwise(sequence))
        tokens, token_lens = pad_tokens([sequence] * 2)
        alignment = align(draw(2, need, 4), torch.tensor([need, need - 1]), tokens, token_lens)
        assert alignment.feasible.tolist() == [True, False]


def test_padding_and_another_blank_change_nothing():
    log_probs, lens = draw(2, 12, 5), torch.tensor([12, 7])
    tokens, token_lens = pad_tokens([[4, 2, 2], [1]])
    first = align(log_probs, lens, tokens, token_lens)
    log_probs[1, 7:] = torch.nan
    moved = torch.where(tokens > 0, tokens - 1, 99)
    second = align(log_probs[..., [1, 2, 3, 4, 0]], lens, moved, token_lens, blank_id=4)
    assert torch.equal(first.spans, second.spans)
    torch.testing.assert_close(first.confidences, second.confidences)


def test_a_transcription_with_the_blank_is_refused():
    with pytest.raises(UserError, match="holds the blank"):
        align(draw(1, 5, 4), torch.tensor([5]), torch.tensor([[1, 0]]), torch.tensor([2]))


def test_no_frames_hold_no_tokens():
    tokens, token_lens = pad_tokens([[], [1]])
    alignment = align(torch.zeros(2, 0, 4), torch.tensor([0, 0]), tokens, token_lens)
    assert alignment.feasible.tolist() == [True, False]
    assert alignment.times(token_lens, 0.04) == [[], None]

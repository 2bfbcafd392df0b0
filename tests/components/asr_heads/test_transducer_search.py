from functools import partial

import pytest
import torch

from components.decoding import TransducerBeam, TransducerGreedy, transducer_beam, transducer_greedy
from components.models.asr.heads import LstmPredictor, StatelessPredictor, TransducerHead
from components.models.asr.types import Encoded
from tests.components.asr_heads.batches import DIM, LENS, VOCAB, all_texts, dirtied, make_encoded, model_of, only

PREDICTORS = [partial(StatelessPredictor, dim=10), partial(LstmPredictor, dim=10)]
each_predictor = pytest.mark.parametrize("predictor", PREDICTORS, ids=["stateless", "lstm"])


def make_head(predictor=PREDICTORS[0], vocab=VOCAB, seed=0, blank=0.0):
    torch.manual_seed(seed)
    head = TransducerHead(DIM, vocab, predictor, joint_dim=8).eval()
    with torch.no_grad():
        head.output.weight.mul_(6)
        head.output.bias[0] += blank
    return head


class Script:
    """A joiner whose frames hold what is to be said: frame -> tokens in their order, then a blank."""

    blank_id, monotonic = 0, False

    def __init__(self, frames):
        self.frames = frames

    def start(self, batch_size):
        return torch.zeros(batch_size, 1), (torch.zeros(batch_size, dtype=torch.long),)

    def step(self, tokens, state):
        said = state[0] + 1
        return said.unsqueeze(1).float(), (said,)

    def log_probs(self, frames, predictions):
        frame, said = torch.broadcast_tensors(frames[..., 0].long(), predictions[..., 0].long())
        wanted = torch.zeros_like(frame)
        for number, (place, token) in enumerate(self.frames):
            wanted = torch.where((said == number) & (frame == place), token, wanted)
        logits = torch.nn.functional.one_hot(wanted, VOCAB) * 3.0
        return logits.log_softmax(-1)


def greedy_by_definition(head, frames, max_symbols):
    """Two loops over one utterance's frames `[T, J]`."""
    prediction, state = head.start(1)
    tokens, at, score = [], [], 0.0
    for number, frame in enumerate(frames):
        for _ in range(max_symbols):
            log_probs = head.log_probs(frame, prediction[0])
            best = int(log_probs.argmax())
            score += log_probs[best].item()
            if best == 0:
                break
            tokens.append(best)
            at.append(number)
            prediction, state = head.step(torch.tensor([best]), state)
    return tokens, at, score


def beam_by_definition(head, frames, text):
    """Log-probability of a text with at most one token in a frame, and a symbol in every frame."""
    prediction, state = head.start(1)
    predictions = [prediction[0]]
    for token in text:
        prediction, state = head.step(torch.tensor([token]), state)
        predictions.append(prediction[0])
    reached = [torch.tensor(0.0)] + [torch.tensor(-torch.inf)] * len(text)
    for frame in frames:
        log_probs = head.log_probs(frame, torch.stack(predictions))
        reached = [
            torch.logaddexp(
                reached[u] + log_probs[u, 0],
                reached[u - 1] + log_probs[u - 1, text[u - 1]] if u else torch.tensor(-torch.inf),
            )
            for u in range(len(text) + 1)
        ]
    return reached[-1].item()


@pytest.mark.parametrize("window", [1, 3, 8])
def test_greedy_says_what_a_joiner_is_built_to_say(window):
    script = [(0, 4), (0, 4), (2, 5), (6, 6), (6, 4), (6, 5)]
    frames = torch.arange(8.0).view(1, 8, 1).expand(2, -1, -1)
    found, _ = transducer_greedy(Script(script), frames, torch.tensor([8, 6]), window=window)
    said = [list(zip(at[mask].tolist(), tokens[mask].tolist())) for at, tokens, mask in
            zip(found.frames, found.tokens, found.mask)]  # fmt: skip
    assert said == [script, script[:3]]
    sure = torch.tensor([3.0] + [0.0] * (VOCAB - 1)).log_softmax(-1)[0]
    torch.testing.assert_close(found.scores, sure * torch.tensor([6.0 + 8, 3 + 6]))


@each_predictor
@pytest.mark.parametrize("max_symbols", [1, 2, 10])
def test_greedy_is_two_loops_over_frames_and_symbols(predictor, max_symbols):
    encoded, lengths = make_encoded(), set()
    for seed in range(5):
        head = make_head(predictor, seed=seed, blank=0.5)
        (found,), times = zip(*TransducerGreedy(max_symbols)(model_of(transducer=head), dirtied(encoded))), []
        frames = head.frames(encoded)
        for row, hypothesis in enumerate(found):
            tokens, times, score = greedy_by_definition(head, frames[row, : LENS[row]], max_symbols)
            assert hypothesis.tokens == tokens
            assert [round(start / 0.04) for start, _ in hypothesis.times] == times
            assert hypothesis.score == pytest.approx(score, abs=1e-4)
            assert all(0 < sure <= 1 for sure in hypothesis.confidences)
            lengths.add(len(tokens))
    assert len(lengths) > 3


def test_a_monotonic_transducer_says_one_token_in_a_frame():
    head, encoded = make_head(), make_encoded()
    head.monotonic = True
    model = model_of(transducer=head)
    (found,) = zip(*TransducerGreedy(max_symbols=10)(model, encoded))
    head.monotonic = False
    (wanted,) = zip(*TransducerGreedy(max_symbols=1)(model, encoded))
    assert found == wanted
    assert any(hypothesis.tokens for hypothesis in found)


@each_predictor
@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_a_stream_of_chunks_says_what_the_whole_says(predictor, chunk):
    model, encoded = model_of(transducer=make_head(predictor, blank=0.5)), make_encoded()
    decoder = TransducerGreedy(max_symbols=3)
    stream, streamed = decoder.stream(model), [([], [], 0.0)] * 4
    for start in range(0, 12, chunk):
        piece = Encoded(encoded.hidden[:, start : start + chunk], (LENS - start).clamp(0, chunk))
        news = stream.push(piece)
        streamed = [
            (tokens + new.tokens, times + new.times, score + new.score)
            for (tokens, times, score), new in zip(streamed, news)
        ]
    for (tokens, times, score), (whole,) in zip(streamed, decoder(model, encoded)):
        assert tokens == whole.tokens
        assert times == whole.times
        assert score == pytest.approx(whole.score, abs=1e-4)
    assert any(tokens for tokens, _, _ in streamed)


@each_predictor
def test_a_beam_as_wide_as_all_prefixes_is_exact(predictor):
    head, lens = make_head(predictor, vocab=3, blank=0.3), torch.tensor([4, 2, 3])
    encoded = make_encoded(lens)
    texts = all_texts((1, 2), 4)
    found = TransducerBeam(beam_size=len(texts) + 3)(model_of(transducer=head), dirtied(encoded))
    for row, hypotheses in enumerate(found):
        frames = head.frames(encoded)[row, : lens[row]]
        wanted = {text: beam_by_definition(head, frames, text) for text in texts if len(text) <= lens[row]}
        assert {tuple(each.tokens): each.score for each in hypotheses} == pytest.approx(wanted, abs=1e-4)
        assert len({tuple(each.tokens) for each in hypotheses}) == len(hypotheses)
        scores = [each.score for each in hypotheses]
        assert scores == sorted(scores, reverse=True)


def test_tokens_of_a_beam_stand_at_the_frames_of_the_better_way():
    # Each frame would say 4 first with a little, then with much probability.
    class Rising(Script):
        def log_probs(self, frames, predictions):
            log_probs = torch.full((*torch.broadcast_shapes(frames.shape, predictions.shape)[:-1], VOCAB), -torch.inf)
            sure = torch.where(predictions[..., 0] == 0, frames[..., 0], torch.tensor(0.0))
            log_probs[..., 4], log_probs[..., 0] = sure.log(), (1 - sure).log()
            return log_probs

    frames = torch.tensor([0.1, 0.2, 0.9, 0.5]).view(1, 4, 1)
    found = transducer_beam(Rising([]), frames, torch.tensor([4]), 3)
    assert found.tokens[0, 0, :1].tolist() == [4]
    assert found.frames[0, 0, :1].tolist() == [2]
    torch.testing.assert_close(found.log_probs[0, 0, :1].exp(), torch.tensor([0.9]))
    torch.testing.assert_close(
        found.scores[0, :2].exp(), torch.tensor([1 - 0.9 * 0.8 * 0.1 * 0.5, 0.9 * 0.8 * 0.1 * 0.5])
    )


def test_a_beam_of_one_is_greedy_with_one_symbol_in_a_frame():
    model, encoded = model_of(transducer=make_head(blank=0.5)), make_encoded()
    beam, greedy = TransducerBeam(beam_size=1)(model, encoded), TransducerGreedy(max_symbols=1)(model, encoded)
    assert [each[0].tokens for each in beam] == [each[0].tokens for each in greedy]
    assert [each[0].times for each in beam] == [each[0].times for each in greedy]
    for (one,), (other,) in zip(beam, greedy):
        assert one.confidences == pytest.approx(other.confidences, abs=1e-5)


@pytest.mark.parametrize("decoder", [TransducerGreedy(), TransducerBeam(4)])
def test_a_batch_is_each_utterance_alone(decoder):
    encoded = make_encoded()
    for seed in range(3):
        model = model_of(transducer=make_head(seed=seed, blank=0.5))
        for row, together in enumerate(decoder(model, dirtied(encoded))):
            (alone,) = decoder(model, only(encoded, row))
            assert [each.tokens for each in together] == [each.tokens for each in alone]
            assert [each.score for each in together] == pytest.approx([each.score for each in alone], abs=1e-4)


def test_utterances_without_frames_say_nothing():
    head, frames = make_head(), torch.randn(2, 0, 8)
    found, state = transducer_greedy(head, frames, torch.zeros(2, dtype=torch.long))
    assert found.tokens.shape == (2, 0)
    assert state.num_frames.tolist() == [0, 0]
    assert transducer_beam(head, frames, torch.zeros(2, dtype=torch.long), 3).scores[:, 0].tolist() == [0, 0]

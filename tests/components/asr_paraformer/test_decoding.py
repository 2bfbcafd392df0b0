import itertools
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from components.decoding.fusion import SumOfScorers
from components.decoding.paraformer import ParaformerDecoder, ParaformerSampling, count_ctc_tokens
from tests.components.asr_paraformer.test_head import V, alone, make_batch, make_head, with_garbage
from utils.errors import UserError


class FakeCtc:
    """Best paths of 4, 2 and 3 tokens."""

    blank_id = 0

    def log_probs(self, encoded):
        paths = [
            [4, 4, 0, 4, 5, 5, 0, 6] + [0] * 9,
            [7, 7, 0, 0, 8, 0, 0, 0, 0] + [9] * 8,  # the nines lie in the padding
            [0, 5, 6, 6, 0, 0, 6] + [0] * 10,
        ]
        return torch.nn.functional.one_hot(torch.tensor(paths), V).float().log_softmax(-1)


def make_model(**options):
    head = make_head(**options).eval()
    return SimpleNamespace(heads={"paraformer": head, "ctc": FakeCtc()}, frame_seconds=0.04)


def test_greedy_is_the_best_token_of_each_place_with_its_time_and_confidence():
    model = make_model()
    encoded = make_batch()[0]
    with torch.no_grad():
        reading = model.heads["paraformer"].decode(encoded)
    decoder = ParaformerDecoder()
    assert decoder.needs == ("paraformer",)
    found = decoder(model, encoded)
    for b, texts in enumerate(found):
        (text,) = texts
        count = int(reading.lens[b])
        best = reading.log_probs[b, :count].max(-1)
        assert text.tokens == best.indices.tolist()
        assert not {0, 2, 3} & set(text.tokens)
        assert text.score == pytest.approx(float(best.values.sum()), abs=1e-4)
        assert text.scores["paraformer"] == pytest.approx(text.score)
        assert_close(torch.tensor(text.confidences), best.values.exp())
        begins, ends = zip(*text.times)
        assert_close(torch.tensor(begins).double(), 0.04 * reading.begins[b, :count], rtol=0, atol=1e-6)
        assert list(begins) == sorted(begins)
        assert 0 <= begins[0] < ends[-1] <= 0.04 * int(encoded.lens[b]) + 1e-9
        assert all(end == pytest.approx(begin, abs=1e-6) for end, begin in zip(ends, begins[1:]))


def test_the_best_texts_are_those_of_all_texts():
    model = make_model()
    encoded, *_ = alone(make_batch(lens=(5, 3, 4)), 0)
    found = ParaformerDecoder(beam_size=12)(model, encoded)[0]
    reading = model.heads["paraformer"].decode(encoded)
    count = int(reading.lens)
    assert count in (2, 3)
    of_places = reading.log_probs[0, :count].tolist()
    every = {
        text: sum(row[token] for row, token in zip(of_places, text))
        for text in itertools.product(range(V), repeat=count)
    }
    best = sorted(every, key=lambda text: -every[text])[:12]
    assert [tuple(text.tokens) for text in found] == best
    assert [text.score for text in found] == pytest.approx([every[text] for text in best], abs=1e-4)
    assert len(ParaformerDecoder(beam_size=12, num_best=3)(model, encoded)[0]) == 3


@pytest.mark.parametrize("decoder", [ParaformerDecoder(beam_size=3), ParaformerSampling(num_samples=3, seed=5)])
def test_a_batch_says_what_each_utterance_says_alone(decoder):
    model, batch = make_model(), make_batch()
    together = decoder(model, with_garbage(*batch)[0])
    for b in range(3):
        (apart,) = decoder(model, alone(batch, b)[0])
        assert [text.tokens for text in apart] == [text.tokens for text in together[b]]
        assert [text.score for text in apart] == pytest.approx([text.score for text in together[b]], abs=1e-4)


def test_the_end_is_not_part_of_the_text():
    model = make_model(add_eos=True)
    head, encoded = model.heads["paraformer"], make_batch()[0]
    head.output.weight.data.zero_()
    head.output.bias.data[:] = torch.linspace(0, 1, V)
    assert all(text.tokens == [V - 1] * len(text.times) for (text,) in ParaformerDecoder()(model, encoded))
    head.output.bias.data[3] = 2.0
    assert [text.tokens for (text,) in ParaformerDecoder()(model, encoded)] == [[], [], []]


def test_drawn_texts_follow_the_distribution():
    model = make_model()
    encoded, *_ = alone(make_batch(), 0)
    with torch.no_grad():
        log_probs = model.heads["paraformer"].decode(encoded).log_probs[0]
    texts = ParaformerSampling(num_samples=3000)(model, encoded)[0]
    drawn = torch.tensor([text.tokens for text in texts])
    shares = torch.stack([(drawn == token).float().mean(0) for token in range(V)], 1)
    assert_close(shares, log_probs.exp() / log_probs.exp().sum(-1, keepdim=True), rtol=0, atol=0.04)
    assert [text.score for text in texts] == sorted((text.score for text in texts), reverse=True)
    assert texts[0].score == pytest.approx(float(log_probs.gather(1, drawn[0][:, None]).sum()), abs=1e-4)


class LikesSevens:
    """Seven is worth a hundred; a text is worth one more at its end."""

    name = "sevens"

    def start(self, batch, device):
        return torch.zeros(batch, 1, 0, dtype=torch.int64, device=device)

    def extend(self, state, candidates):
        return 100.0 * (candidates == 7).unsqueeze(1)

    def advance(self, state, tokens):
        return state, torch.zeros(tokens.shape)

    def finish(self, state):
        return torch.ones(state.shape[:2])


def test_what_else_is_known_of_texts_is_added():
    model, encoded = make_model(), make_batch()[0]
    for texts in ParaformerDecoder(beam_size=4, scorer=SumOfScorers([LikesSevens()]))(model, encoded):
        best = texts[0]
        assert best.tokens == [7] * len(best.times)
        assert best.scores["sevens"] == 100 * len(best.tokens) + 1
        assert best.score == pytest.approx(best.scores["paraformer"] + best.scores["sevens"], abs=1e-3)


def test_temperature_and_filters_narrow_what_is_drawn():
    model, encoded = make_model(), make_batch()[0]
    best = [text.tokens for (text,) in ParaformerDecoder()(model, encoded)]
    for narrow in ({"temperature": 1e-3}, {"top_k": 1}, {"top_p": 1e-3}):
        assert [text.tokens for (text,) in ParaformerSampling(**narrow)(model, encoded)] == best
    texts = ParaformerSampling(top_k=2, num_samples=200)(model, encoded)[0]
    for place in range(len(best[0])):
        assert len({text.tokens[place] for text in texts}) == 2


def test_each_utterance_draws_by_its_own_seed():
    model, batch = make_model(), make_batch()
    decoder = ParaformerSampling()
    seeds = torch.tensor([3, 8, 1])
    together = decoder(model, batch[0], seeds)
    for b in range(3):
        assert decoder(model, alone(batch, b)[0], seeds[b : b + 1])[0][0].tokens == together[b][0].tokens


@pytest.mark.parametrize("add_eos", [False, True])
@pytest.mark.parametrize("use_predictor", [False, True])
def test_the_number_of_tokens_may_come_from_ctc(use_predictor, add_eos):
    model = make_model(use_predictor=use_predictor, add_eos=add_eos)
    model.heads["paraformer"].output.bias.data[3] = -100
    decoder = ParaformerDecoder(lengths="ctc")
    assert decoder.needs == ("paraformer", "ctc")
    found = decoder(model, make_batch()[0])
    assert [len(text.tokens) for (text,) in found] == [count + add_eos for count in (4, 2, 3)]


def test_counting_leaves_out_blanks_repeats_and_padding():
    counts = count_ctc_tokens(FakeCtc().log_probs(None), torch.tensor([17, 9, 12]))
    assert counts.tolist() == [4, 2, 3]


def test_nothing_heard_is_an_empty_text():
    model, (encoded, *_) = make_model(), make_batch()
    model.heads["paraformer"].predictor.out.bias.data[:] = -100
    assert [text.tokens for (text,) in ParaformerDecoder()(model, encoded)] == [[], [], []]
    assert [text.tokens for (text,) in ParaformerSampling()(model, encoded)] == [[], [], []]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ParaformerDecoder(lengths="guess"), "'guess' is none of heard, ctc"),
        (lambda: ParaformerDecoder(beam_size=0), "decoder.beam_size: 0 is below 1"),
        (lambda: ParaformerSampling(temperature=0), "decoder.temperature: 0 is not above 0"),
        (lambda: ParaformerSampling(top_p=0), "decoder.top_p: 0"),
        (lambda: ParaformerSampling(top_k=0), "decoder.top_k: 0 is below 1"),
    ],
)
def test_settings_out_of_range_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()

from itertools import groupby, product
from types import SimpleNamespace

import pytest
import torch

from components.decoding import (
    AttentionBeam,
    AttentionRescoring,
    CtcPrefixScorer,
    EndRules,
    JointCtcAttention,
    label_beam,
    rescore,
)
from components.models.asr.heads import AttentionHead, CtcHead
from components.models.asr.types import Hypothesis
from tests.components.asr_heads.batches import DIM, LENS, VOCAB, all_texts, dirtied, make_encoded, model_of, only
from utils.errors import UserError

SYMBOLS, EOS = (1, 4, 5, 6), 3


def make_model(seed=0, **options):
    torch.manual_seed(seed)
    sizes = {"dim": 16, "num_layers": 2, "num_heads": 2, "ff_dim": 24, "dropout": 0.0}
    attention, ctc = AttentionHead(DIM, VOCAB, **sizes, **options).eval(), CtcHead(DIM, VOCAB).eval()
    with torch.no_grad():
        attention.decoder.output.weight.mul_(4)
        ctc.output.weight.mul_(4)
    return model_of(attention=attention, ctc=ctc)


def log_prob_of(model, encoded, text):
    """By the attention head, all at once."""
    tokens = torch.tensor([[list(text)]], dtype=torch.long)
    return model.heads["attention"].score(encoded, tokens, torch.tensor([[len(text)]])).sum().item()


def ctc_log_prob_of(model, encoded, text):
    log_probs = model.heads["ctc"].log_probs(encoded).transpose(0, 1)
    loss = torch.nn.functional.ctc_loss(
        log_probs,
        torch.tensor([list(text)], dtype=torch.long),
        encoded.lens,
        torch.tensor([len(text)]),
        reduction="sum",
    )
    return -loss.item()


@pytest.mark.parametrize("length_penalty", [0.0, 1.5])
def test_a_beam_as_wide_as_all_texts_is_exact(length_penalty):
    lens, texts = torch.tensor([3, 2]), all_texts(SYMBOLS, 3)
    model, encoded = make_model(), make_encoded(lens)
    found = AttentionBeam(len(texts), length_penalty)(model, dirtied(encoded))
    for row, hypotheses in enumerate(found):
        alone = only(encoded, row)
        wanted = {text: log_prob_of(model, alone, text) for text in texts if len(text) <= lens[row]}
        ranked = {text: score / ((6 + len(text)) / 6) ** length_penalty for text, score in wanted.items()}
        assert {tuple(each.tokens): each.score for each in hypotheses} == pytest.approx(ranked, abs=1e-4)
        assert {tuple(each.tokens): each.scores["attention"] for each in hypotheses} == pytest.approx(wanted, abs=1e-4)
        assert [tuple(each.tokens) for each in hypotheses] == sorted(ranked, key=ranked.get, reverse=True)


@pytest.mark.parametrize("ctc_weight", [0.1, 0.4, 0.9])
def test_the_joint_search_is_exact_when_it_is_wide(ctc_weight):
    lens, texts = torch.tensor([3, 2]), all_texts(SYMBOLS, 3)
    model, encoded = make_model(), make_encoded(lens)
    decoder = JointCtcAttention(ctc_weight, num_candidates=None, beam_size=len(texts))
    for row, hypotheses in enumerate(decoder(model, dirtied(encoded))):
        found = {tuple(each.tokens): each for each in hypotheses}
        alone = only(encoded, row)
        for text in texts:
            by_ctc = ctc_log_prob_of(model, alone, text)
            if len(text) <= lens[row] and by_ctc > -torch.inf:  # 4 4 does not fit into two frames
                score = (1 - ctc_weight) * log_prob_of(model, alone, text) + ctc_weight * by_ctc
                assert found[text].score == pytest.approx(score, abs=1e-4)
                assert found[text].scores["ctc"] == pytest.approx(by_ctc, abs=1e-4)
        assert hypotheses[0].score == max(each.score for each in hypotheses)


@pytest.mark.parametrize("seed", range(3))
def test_prefix_scores_are_those_of_all_paths(seed):
    torch.manual_seed(seed)
    log_probs, lens = (2 * torch.randn(2, 5, 3)).log_softmax(-1), torch.tensor([5, 3])
    for row, length in enumerate(lens.tolist()):
        paths = {}
        for path in product(range(3), repeat=length):
            text = tuple(symbol for symbol, _ in groupby(path) if symbol)
            log_prob = sum(log_probs[row, t, symbol] for t, symbol in enumerate(path))
            paths[text] = torch.logaddexp(paths.get(text, torch.tensor(-torch.inf)), log_prob)
        for prefix in all_texts((1, 2), 3):
            scorer = CtcPrefixScorer(log_probs, lens, 2)
            for token in prefix:
                scorer.advance(torch.tensor([[1, 0], [0, 1]]), torch.full((2, 2), token))
            candidates = torch.tensor([1, 2]).expand(2, 2, -1)
            for token, score in zip((1, 2), scorer.score(candidates)[row, 1]):
                begun = (*prefix, token)
                ways = [log_prob for text, log_prob in paths.items() if text[: len(begun)] == begun]
                wanted = torch.stack(ways).logsumexp(0) if ways else torch.tensor(-torch.inf)
                torch.testing.assert_close(score.float(), wanted, rtol=1e-5, atol=1e-5)
            whole = paths.get(prefix, torch.tensor(-torch.inf))
            torch.testing.assert_close(scorer.finish()[row, 0].float(), whole, rtol=1e-5, atol=1e-5)


def test_prefix_scores_of_long_and_certain_frames_stay_exact():
    torch.manual_seed(0)
    log_probs, tokens = (30 * torch.randn(1, 2000, 6)).log_softmax(-1), torch.randint(1, 6, (20,))
    scorer = CtcPrefixScorer(log_probs, torch.tensor([2000]), 1)
    for token in tokens:
        scorer.advance(torch.tensor([[0]]), token.view(1, 1))
    loss = torch.nn.functional.ctc_loss(
        log_probs.double().transpose(0, 1), tokens[None], torch.tensor([2000]), torch.tensor([20]), reduction="sum"
    )
    torch.testing.assert_close(scorer.finish().squeeze(), -loss, rtol=1e-9, atol=1e-6)


def step_by_table(table):
    """A decoder that looks at the last token only."""
    return lambda tokens, parents: table[tokens].clone()


def beam_of(table, max_len, beam_size=4, min_len=0, **rules):
    ends = EndRules(torch.tensor([max_len]), torch.tensor([min_len]), **rules)
    found = label_beam(step_by_table(table), ends, beam_size=beam_size, bos_id=2, eos_id=EOS)
    rows = zip(found.tokens[0].tolist(), found.num_tokens[0].tolist(), found.scores[0].tolist())
    return [tokens[:n] for tokens, n, score in rows if score > -torch.inf]


def make_table(**rows):
    """Probabilities of what follows each symbol; the rest is never said."""
    table = torch.zeros(VOCAB, VOCAB)
    for symbol, following in {int(name[1:]): row for name, row in rows.items()}.items():
        for token, share in following.items():
            table[symbol, token] = share
    return table.log()


def test_an_end_follows_the_rules():
    table = make_table(_2={EOS: 0.5, 4: 0.3, 5: 0.2}, _4={EOS: 0.4, 5: 0.6}, _5={EOS: 0.4, 4: 0.6})
    assert beam_of(table, max_len=3, beam_size=1) == [[]]
    assert beam_of(table, max_len=3, beam_size=1, min_len=1) == [[4]]
    assert beam_of(table, max_len=1) == [[], [4], [5]]
    # ln .5 > 1.5 ln .3, and ln .4 > 1.5 ln .6 does not hold: then only what is as long as allowed ends.
    assert beam_of(table, max_len=2, eos_threshold=1.5) == [[], [4, 5], [5, 4]]
    # Behind the longest allowed length a long text wins by its norm.
    assert len(beam_of(table, max_len=8, length_penalty=6.0)[0]) == 8


def test_a_search_stops_where_nothing_better_can_come():
    table, calls = make_table(_2={4: 0.9, 5: 0.1}, _4={EOS: 0.9, 4: 0.1}, _5={EOS: 1.0}), []

    def next_token(tokens, parents):
        calls.append(tokens)
        return table[tokens].clone()

    rules = EndRules(torch.tensor([50]), torch.tensor([0]))
    found = label_beam(next_token, rules, beam_size=2, bos_id=2, eos_id=EOS)
    assert found.tokens[0, 0, :1].tolist() == [4]
    assert len(calls) < 5


@pytest.mark.parametrize(
    "decoder",
    [AttentionBeam(3), AttentionBeam(3, length_penalty=1.0, max_ratio=0.5), JointCtcAttention(0.4, beam_size=3)],
    ids=["attention", "short", "joint"],
)
def test_a_batch_is_each_utterance_alone(decoder):
    encoded = make_encoded()
    for seed in range(3):
        model = make_model(seed)
        for row, together in enumerate(decoder(model, dirtied(encoded))):
            (alone,) = decoder(model, only(encoded, row))
            assert [each.tokens for each in together] == [each.tokens for each in alone]
            assert [each.score for each in together] == pytest.approx([each.score for each in alone], abs=1e-4)
            assert all(len(each.tokens) <= int(LENS[row]) for each in together)


def test_confidences_are_the_probabilities_of_the_tokens():
    model, encoded = make_model(), make_encoded()
    for row, hypotheses in enumerate(AttentionBeam(3)(model, encoded)):
        best = hypotheses[0]
        tokens = torch.tensor([[best.tokens]], dtype=torch.long)
        scored = model.heads["attention"].score(only(encoded, row), tokens, torch.tensor([[len(best.tokens)]]))
        assert best.confidences == pytest.approx(scored.exp()[0, 0, :-1].tolist(), abs=1e-5)


def test_num_best_cuts_the_list():
    model, encoded = make_model(), make_encoded()
    every, first = AttentionBeam(4)(model, encoded), AttentionBeam(4, num_best=1)(model, encoded)
    assert [[texts[0].tokens] for texts in every] == [[each.tokens for each in texts] for texts in first]


def proposals():
    """What a search found: three texts, one, none, two."""
    texts = [[[4, 5], [6], []], [[5, 5, 4]], [], [[6, 6], [4]]]
    return [
        [Hypothesis(text, -1.0 - rank, times=[(0.0, 0.04)] * len(text)) for rank, text in enumerate(of_one)]
        for of_one in texts
    ]


@pytest.mark.parametrize("reverse_weight", [0.0, 0.3])
def test_rescoring_adds_what_the_decoders_say(reverse_weight):
    model, encoded = make_model(reverse_layers=1), make_encoded()
    search = SimpleNamespace(nbest=lambda log_probs, lens, k: proposals())
    decoder = AttentionRescoring(3, search, ctc_weight=0.7, reverse_weight=reverse_weight)
    head = model.heads["attention"]
    for row, (found, proposed) in enumerate(zip(decoder(model, dirtied(encoded)), proposals())):
        by_text = {tuple(each.tokens): each for each in found}
        assert len(found) == len(proposed)
        assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)
        for each in proposed:
            given = (torch.tensor([[each.tokens]], dtype=torch.long), torch.tensor([[len(each.tokens)]]))
            forward, backward = (head.score(only(encoded, row), *given, reverse=turn).sum() for turn in (False, True))
            wanted = (1 - reverse_weight) * forward + reverse_weight * backward
            judged = by_text[tuple(each.tokens)]
            assert judged.score == pytest.approx(float(wanted.detach()) + 0.7 * each.score, abs=1e-4)
            assert judged.scores["ctc"] == each.score
            assert judged.times == each.times
            assert len(judged.confidences) == len(each.tokens)


@pytest.mark.parametrize("decoder", [JointCtcAttention(), AttentionRescoring()], ids=["joint", "rescoring"])
def test_the_best_text_has_the_times_of_ctc_and_the_confidences_of_the_decoder(decoder):
    model, encoded = make_model(), make_encoded()
    for row, hypotheses in enumerate(decoder(model, encoded)):
        best = hypotheses[0]
        assert len(best.times) == len(best.tokens)
        assert all(start < stop for start, stop in best.times)
        assert all(earlier[1] <= later[0] + 1e-9 for earlier, later in zip(best.times, best.times[1:]))
        assert max((stop for _, stop in best.times), default=0.0) <= LENS[row] * 0.04 + 1e-6
        tokens = torch.tensor([[best.tokens]], dtype=torch.long)
        scored = model.heads["attention"].score(only(encoded, row), tokens, torch.tensor([[len(best.tokens)]]))
        assert best.confidences == pytest.approx(scored.exp()[0, 0, :-1].tolist(), abs=1e-5)


def test_rescoring_proposes_what_the_prefix_beam_finds():
    model, encoded = make_model(), make_encoded(torch.tensor([3, 2]))
    for row, hypotheses in enumerate(AttentionRescoring(beam_size=100, ctc_weight=0.5)(model, dirtied(encoded))):
        alone = only(encoded, row)
        for each in hypotheses:
            by_ctc, by_attention = ctc_log_prob_of(model, alone, each.tokens), log_prob_of(model, alone, each.tokens)
            assert not {2, 3} & set(each.tokens)
            assert each.score == pytest.approx(by_attention + 0.5 * by_ctc, abs=1e-3)


def test_rescoring_from_the_right_needs_a_decoder_from_the_right():
    model, encoded = make_model(), make_encoded()
    with pytest.raises(UserError, match="reverse_weight"):
        rescore(model.heads["attention"], encoded, proposals(), reverse_weight=0.3)


def test_weights_out_of_range_are_refused():
    for weight in (0.0, 1.0):
        with pytest.raises(UserError, match="ctc_weight"):
            JointCtcAttention(weight)
    with pytest.raises(UserError, match="length_penalty"):
        AttentionBeam(length_penalty=-1.0)

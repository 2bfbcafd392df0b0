import pytest
import torch

from components.decoding import AttentionSampling, draw, keep_top_k, keep_top_p
from components.models.asr.heads import AttentionHead
from tests.components.asr_heads.batches import DIM, LENS, VOCAB, dirtied, make_encoded, model_of, only
from utils.errors import UserError


def make_model():
    torch.manual_seed(0)
    head = AttentionHead(DIM, VOCAB, dim=16, num_layers=1, num_heads=2, ff_dim=24, dropout=0.0).eval()
    return model_of(attention=head)


@pytest.mark.parametrize("p", [0.05, 0.3, 0.5, 0.9, 0.999, 1.0])
def test_the_nucleus_is_that_of_transformers(p):
    from transformers import TopPLogitsWarper

    torch.manual_seed(0)
    logits = 3 * torch.randn(64, 40)
    wanted = TopPLogitsWarper(top_p=p)(None, logits)
    assert torch.equal(keep_top_p(logits, p), wanted)
    assert torch.equal(keep_top_p(logits.view(8, 8, 40), p), wanted.view(8, 8, 40))


@pytest.mark.parametrize("k", [1, 5, 40, 60])
def test_the_best_are_those_of_transformers(k):
    from transformers import TopKLogitsWarper

    torch.manual_seed(0)
    logits = torch.randn(64, 40).round(decimals=1)  # with equals
    assert torch.equal(keep_top_k(logits, k), TopKLogitsWarper(top_k=k)(None, logits))


def test_symbols_are_drawn_with_their_probabilities():
    logits = torch.tensor([0.0, 0.1, 0.5, 0.0, 0.3, 0.0]).log()
    uniforms = torch.linspace(0, 1, 9001)[:-1]
    counts = torch.bincount(draw(logits.expand(9000, -1), uniforms), minlength=6)
    assert counts[[0, 3, 5]].sum() == 0
    torch.testing.assert_close(counts[[1, 2, 4]], torch.tensor([1000, 5000, 3000]), rtol=0, atol=2)


@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "top_k": 4, "top_p": 0.8}])
def test_a_seed_has_its_texts_alone_and_in_a_batch(options):
    model, encoded, seeds = make_model(), make_encoded(), torch.tensor([11, 12, 13, 14])
    decoder = AttentionSampling(**options, num_samples=3)
    together = decoder(model, dirtied(encoded), seeds)
    for row, texts in enumerate(together):
        (alone,) = decoder(model, only(encoded, row), seeds[row : row + 1])
        assert [each.tokens for each in texts] == [each.tokens for each in alone]
        assert [each.score for each in texts] == pytest.approx([each.score for each in alone], abs=1e-4)
    others = decoder(model, encoded, seeds + 100)
    assert [[each.tokens for each in texts] for texts in others] != [
        [each.tokens for each in texts] for texts in together
    ]


def test_without_seeds_the_one_seed_is_that_of_all():
    model, encoded = make_model(), make_encoded()
    found = AttentionSampling(seed=7)(model, encoded)
    wanted = AttentionSampling()(model, encoded, torch.full((4,), 7))
    assert [each.tokens for (each,) in found] == [each.tokens for (each,) in wanted]


def test_a_score_is_the_log_probability_of_the_text():
    model, encoded = make_model(), make_encoded()
    head = model.heads["attention"]
    for row, texts in enumerate(AttentionSampling(temperature=0.5, num_samples=4)(model, encoded)):
        scores = [each.score for each in texts]
        assert scores == sorted(scores, reverse=True)
        for each in texts:
            assert len(each.tokens) <= int(LENS[row])
            given = (torch.tensor([[each.tokens]], dtype=torch.long), torch.tensor([[len(each.tokens)]]))
            scored = head.score(only(encoded, row), *given)
            assert each.score == pytest.approx(scored.sum().item(), abs=1e-4)
            assert each.confidences == pytest.approx(scored.exp()[0, 0, :-1].tolist(), abs=1e-5)


def test_only_the_best_symbol_is_greedy():
    from components.decoding import AttentionBeam

    model, encoded = make_model(), make_encoded()
    greedy = AttentionBeam(beam_size=1)(model, encoded)
    for options in ({"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}):
        # The beam may also end where it has a better ended text; a text that both end the same way is the same.
        drawn = AttentionSampling(**options)(model, encoded)
        for (one,), (other,) in zip(drawn, greedy):
            assert other.score >= one.score - 1e-4
            assert one.tokens[: len(other.tokens)] == other.tokens


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"top_p": 0.0}, {"top_p": 1.5}, {"top_k": 0}])
def test_a_setting_out_of_range_is_refused(options):
    with pytest.raises(UserError, match=f"decoder.{next(iter(options))}"):
        AttentionSampling(**options)

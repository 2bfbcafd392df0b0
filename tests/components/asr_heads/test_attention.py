from itertools import product
from math import log

import pytest
import torch

from components.models.asr.heads import AttentionHead, reverse_tokens, smoothed_cross_entropy
from tests.components.asr_heads.batches import (
    DIM,
    LENS,
    TOKEN_LENS,
    VOCAB,
    dirtied,
    is_close_to_alone,
    make_encoded,
    make_tokens,
)


def make_head(**options):
    torch.manual_seed(0)
    return AttentionHead(DIM, VOCAB, dim=16, num_layers=2, num_heads=2, ff_dim=24, **{"dropout": 0.0, **options})


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_smoothing_is_the_divergence_from_the_smoothed_target(smoothing):
    logits, targets = torch.randn(2, 3, VOCAB), torch.tensor([[1, 4, -100], [6, -100, -100]])
    found = smoothed_cross_entropy(logits, targets, smoothing)
    for b, n in product(range(2), range(3)):
        if targets[b, n] == -100:
            assert found[b, n] == 0
            continue
        wanted = torch.full((VOCAB,), smoothing / (VOCAB - 1))
        wanted[targets[b, n]] = 1 - smoothing
        divergence = torch.nn.functional.kl_div(logits[b, n].log_softmax(-1), wanted, reduction="sum")
        torch.testing.assert_close(found[b, n], divergence)


def test_a_model_that_says_the_smoothed_target_has_no_loss():
    logits = torch.full((1, 1, VOCAB), log(0.1 / (VOCAB - 1)))
    logits[..., 5] = log(0.9)
    assert smoothed_cross_entropy(logits, torch.tensor([[5]]), 0.1).abs() < 1e-6


@pytest.mark.parametrize("reverse_layers", [0, 1])
def test_a_batch_is_each_utterance_alone(reverse_layers):
    head = make_head(reverse_layers=reverse_layers)
    is_close_to_alone(head, make_encoded(), make_tokens(), TOKEN_LENS)


def test_the_loss_is_that_of_the_texts_and_their_ends():
    head, encoded, tokens = make_head(label_smoothing=0.0), make_encoded(), make_tokens()
    output = head(encoded, tokens, TOKEN_LENS)
    log_probs = head.score(encoded, tokens.unsqueeze(1), TOKEN_LENS.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(output.per_item, -log_probs.sum(1))
    assert (log_probs != 0).sum(1).tolist() == (TOKEN_LENS + 1).tolist()
    assert output.usable.all()
    assert output.metrics["token_accuracy"][1] == TOKEN_LENS.sum() + 4


def test_each_row_is_turned_by_itself():
    tokens = torch.tensor([[4, 5, 6, -100], [7, -100, -100, -100], [4, 5, 6, 7]])
    turned = reverse_tokens(tokens, torch.tensor([3, 1, 4]))
    assert turned.tolist() == [[6, 5, 4, -100], [7, -100, -100, -100], [7, 6, 5, 4]]


def test_the_decoder_from_the_right_shares_the_loss():
    head, encoded, tokens = make_head(reverse_layers=1, reverse_weight=0.25, label_smoothing=0.0), make_encoded(), None
    tokens = make_tokens()
    texts = (tokens.unsqueeze(1), TOKEN_LENS.unsqueeze(1))
    forward = head.score(encoded, *texts).sum((1, 2))
    backward = head.score(encoded, *texts, reverse=True).sum((1, 2))
    assert not torch.allclose(forward, backward)
    output = head(encoded, tokens, TOKEN_LENS)
    torch.testing.assert_close(output.per_item, -(0.75 * forward + 0.25 * backward))
    # Turned twice, and by the other decoder, the text is the same.
    head.decoder, head.reverse_decoder = head.reverse_decoder, head.decoder
    turned = reverse_tokens(tokens, TOKEN_LENS).unsqueeze(1)
    torch.testing.assert_close(head.score(encoded, turned, texts[1]).sum((1, 2)), backward)


def test_step_by_step_says_what_whole_texts_say():
    head, encoded = make_head().eval(), dirtied(make_encoded())
    tokens = torch.randint(4, VOCAB, (4, 3, 5))
    cache = head.start(encoded)
    inputs = torch.cat([torch.full((4, 3, 1), head.bos_id), tokens], dim=-1)
    steps = torch.stack([head.step(inputs[..., place], cache) for place in range(6)], dim=2)
    wanted = head.decoder(inputs, encoded.hidden, encoded.lens).log_softmax(-1)
    allowed = [symbol for symbol in range(VOCAB) if symbol not in (head.blank_id, head.bos_id)]
    torch.testing.assert_close(steps[..., allowed], wanted[..., allowed], rtol=1e-5, atol=1e-5)
    assert (steps[..., [head.blank_id, head.bos_id]] == -torch.inf).all()


def test_a_cache_goes_on_from_the_parents():
    head, encoded = make_head().eval(), make_encoded()
    tokens, parents = torch.randint(4, VOCAB, (4, 3)), torch.tensor([[2, 0, 0], [1, 1, 1], [0, 1, 2], [2, 1, 0]])
    cache, chosen = head.start(encoded), head.start(encoded)
    head.step(tokens, cache)
    cache.select(parents)
    head.step(tokens.gather(1, parents), chosen)
    following = torch.randint(4, VOCAB, (4, 3))
    torch.testing.assert_close(head.step(following, cache), head.step(following, chosen))


def test_a_token_does_not_depend_on_later_ones():
    head, encoded, tokens = make_head(), make_encoded(), torch.randint(4, VOCAB, (4, 1, 6))
    lens = torch.full((4, 1), 6)
    before = head.score(encoded, tokens, lens)
    tokens[..., 4:] = torch.where(tokens[..., 4:] == 4, 5, 4)
    after = head.score(encoded, tokens, lens)
    torch.testing.assert_close(after[..., :4], before[..., :4])
    assert not torch.allclose(after[..., 4:], before[..., 4:])


def test_frames_that_sound_alike_are_told_apart_by_their_times():
    head, encoded = make_head(), make_encoded(torch.tensor([8]))
    encoded.hidden[:] = encoded.hidden[:, :1].clone()
    for weights in head.attention_maps(encoded, torch.tensor([[4, 4]]), torch.tensor([2])):
        said_first, said_second = weights[0, 0, 1, :8], weights[0, 0, 2, :8]
        assert said_first.std() > 1e-3
        assert not torch.allclose(said_first, said_second, atol=1e-3)


def test_attention_maps_are_the_weights_that_the_decoder_uses():
    head, encoded, tokens = make_head(), dirtied(make_encoded()), make_tokens()
    maps = head.attention_maps(encoded, tokens, TOKEN_LENS)
    assert [tuple(weights.shape) for weights in maps] == [(4, 2, 6, 15)] * 2
    inside = torch.arange(15) < LENS.unsqueeze(1)
    for weights in maps:
        torch.testing.assert_close(weights.sum(-1), torch.ones(4, 2, 6))
        assert weights.masked_fill(inside[:, None, None], 0).abs().max() == 0
    layer, x = head.decoder.layers[0], torch.randn(4, 3, 5, 16)
    memory = layer.memory(encoded.hidden, encoded.lens)
    attended = torch.einsum("bkhnt,bhtc->bknhc", layer.memory_weights(x, memory), memory.values).flatten(3)
    torch.testing.assert_close(layer.attend_memory(x, memory), x + layer.memory_out(attended))


def test_checkpointing_changes_no_gradient():
    plain, checkpointed = make_head(dropout=0.2), make_head(dropout=0.2, checkpointing=True)
    for head in (plain, checkpointed):
        torch.manual_seed(3)
        head(make_encoded(), make_tokens(), TOKEN_LENS).per_item.sum().backward()
    for one, other in zip(plain.parameters(), checkpointed.parameters()):
        torch.testing.assert_close(one.grad, other.grad)


def test_an_utterance_without_frames_is_not_usable():
    head, encoded = make_head(), make_encoded(torch.tensor([5, 0]))
    output = head(encoded, make_tokens(torch.tensor([2, 2])), torch.tensor([2, 2]))
    output.per_item.sum().backward()
    assert output.usable.tolist() == [True, False]
    assert output.per_item[1] == 0
    assert all(parameter.grad.isfinite().all() for parameter in head.parameters())


def test_the_loss_is_float32_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        assert make_head()(make_encoded(), make_tokens(), TOKEN_LENS).per_item.dtype == torch.float32

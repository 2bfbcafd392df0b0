from itertools import product

import pytest
import torch
from torch.nn.functional import ctc_loss as torch_ctc_loss

from components.models.asr.heads import CtcHead, ctc_feasible
from components.models.asr.types import Encoded
from tests.components.asr_heads.batches import (
    DIM,
    LENS,
    TOKEN_LENS,
    VOCAB,
    is_close_to_alone,
    make_encoded,
    make_tokens,
)


def make_head(**options):
    torch.manual_seed(0)
    return CtcHead(DIM, VOCAB, **options)


def says(symbols, lens, vocab=VOCAB):
    """A head and frames in which it sees these symbols."""
    head = CtcHead(vocab, vocab)
    with torch.no_grad():
        head.output.weight.copy_(torch.eye(vocab) * 20)
        head.output.bias.zero_()
    return head, Encoded(torch.nn.functional.one_hot(torch.tensor(symbols), vocab).float(), torch.tensor(lens))


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_loss_is_that_of_wav2vec2_for_ctc_to_the_bit(reduction):
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

    torch.manual_seed(0)
    config = Wav2Vec2Config(
        vocab_size=VOCAB, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        conv_dim=(16,) * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4, pad_token_id=0,
        ctc_loss_reduction=reduction,
    )  # fmt: skip
    model = Wav2Vec2ForCTC(config).eval()
    tokens, token_lens = make_tokens(torch.tensor([3, 5])), torch.tensor([3, 5])
    waveform, attended = torch.randn(2, 6000), torch.ones(2, 6000, dtype=torch.long)
    attended[1, 4500:] = 0
    wanted = model(waveform, attention_mask=attended, labels=tokens).loss
    head = CtcHead(16, VOCAB).eval()
    head.output.load_state_dict(model.lm_head.state_dict())
    lens = model._get_feat_extract_output_lengths(attended.sum(1))
    found = head(Encoded(model.wav2vec2(waveform, attention_mask=attended)[0], lens), tokens, token_lens).per_item
    assert torch.equal(found.sum() if reduction == "sum" else (found / token_lens).mean(), wanted)


def test_exactly_the_pairs_without_an_alignment_are_dropped():
    pairs = [(t, text) for t in range(1, 6) for n in range(5) for text in product((1, 2), repeat=n)]
    lens = torch.tensor([t for t, _ in pairs])
    token_lens = torch.tensor([len(text) for _, text in pairs])
    tokens = torch.full((len(pairs), 4), -100)
    for row, (_, text) in zip(tokens, pairs):
        row[: len(text)] = torch.tensor(text)
    log_probs = torch.randn(5, len(pairs), 3).log_softmax(-1)
    losses = torch_ctc_loss(log_probs, tokens.clamp(min=0), lens, token_lens, reduction="none")
    assert torch.equal(ctc_feasible(lens, tokens, token_lens), losses.isfinite())


def test_an_infeasible_utterance_has_no_loss_and_a_zero_gradient_and_is_counted():
    head, encoded = make_head(), make_encoded()
    encoded.hidden.requires_grad_()
    tokens, token_lens = make_tokens(), TOKEN_LENS.clone()
    tokens[1, :4], token_lens[1] = 5, 4  # four equal tokens ask for seven frames, there are four
    output = head(encoded, tokens, token_lens)
    output.per_item.sum().backward()
    assert output.usable.tolist() == [True, False, True, True]
    assert output.per_item[1] == 0
    assert output.per_item[[0, 2, 3]].gt(0).all()
    assert encoded.hidden.grad.isfinite().all()
    assert encoded.hidden.grad[1].abs().max() == 0
    assert encoded.hidden.grad[0].abs().max() > 0
    assert [int(part) for part in output.metrics["infeasible"]] == [1, 4]


def test_an_utterance_without_frames_is_not_usable():
    lens = torch.tensor([3, 0])
    output = make_head()(make_encoded(lens), torch.empty(2, 0, dtype=torch.long), torch.zeros(2, dtype=torch.long))
    assert output.usable.tolist() == [True, False]
    assert output.per_item[1] == 0


def test_a_batch_is_each_utterance_alone():
    head = make_head(intermediate_layers=[2, 4])
    is_close_to_alone(head, make_encoded(layers=[2, 4]), make_tokens(), TOKEN_LENS)


def test_inner_layers_share_the_loss():
    head, encoded = make_head(intermediate_layers=[3], intermediate_weight=0.25), make_encoded(layers=[3])
    assert head.layers == (3,)
    last = make_head()
    last.load_state_dict({name: value for name, value in head.state_dict().items() if "norm" not in name})
    inner = Encoded(head.inner_norm(encoded.layers[3]), LENS)
    tokens = make_tokens()
    of_last, of_inner = (last(part, tokens, TOKEN_LENS).per_item for part in (encoded, inner))
    output = head(encoded, tokens, TOKEN_LENS)
    torch.testing.assert_close(output.per_item, 0.75 * of_last + 0.25 * of_inner)
    torch.testing.assert_close(output.metrics["inner_loss"][0], of_inner.sum())


def test_metrics_tell_a_collapse_from_speech():
    head, encoded = says([[4, 4, 0, 4, 5, 0], [0, 0, 0, 0, 6, 6]], [6, 4])
    metrics = head(encoded, torch.tensor([[4, 4, 5, 6], [5, 6, -100, -100]]), torch.tensor([4, 2])).metrics
    counts = {name: [int(part) for part in pair] for name, pair in metrics.items()}
    # Said: 4 4 5, and nothing; the second one's last two frames are padding.
    assert counts == {
        "blank_share": [6, 10],
        "empty_share": [1, 2],
        "greedy_length_ratio": [3, 6],
        "infeasible": [0, 2],
    }


def test_log_probs_stay_float32_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        head, encoded = make_head(), make_encoded()
        assert head.log_probs(encoded).dtype == torch.float32
        assert head(encoded, make_tokens(), TOKEN_LENS).per_item.dtype == torch.float32

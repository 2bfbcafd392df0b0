"""Each head learns a few texts, and its decoders say them."""

from functools import partial

import pytest
import torch

from components.decoding import (
    AttentionBeam,
    AttentionRescoring,
    AttentionSampling,
    JointCtcAttention,
    TransducerGreedy,
)
from components.models.asr.heads import AttentionHead, CtcHead, LstmPredictor, StatelessPredictor, TransducerHead
from components.models.asr.types import Encoded
from tests.components.asr_heads.batches import DIM, LENS, TOKEN_LENS, VOCAB, make_encoded, make_tokens, model_of

DECODERS = {
    "greedy": TransducerGreedy(),
    "attention": AttentionBeam(4),
    "joint": JointCtcAttention(beam_size=4),
    "rescoring": AttentionRescoring(4),
    "nucleus": AttentionSampling(top_p=0.2),
}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    heads = {
        "ctc": CtcHead(DIM, VOCAB),
        "attention": AttentionHead(DIM, VOCAB, dim=16, num_layers=1, num_heads=2, ff_dim=32, dropout=0.0),
        "transducer": TransducerHead(DIM, VOCAB, partial(LstmPredictor, dim=12), joint_dim=16),
    }
    encoded, tokens = make_encoded(), make_tokens()
    for head in heads.values():
        optimizer = torch.optim.Adam(head.parameters(), lr=0.02)
        for _ in range(120):
            optimizer.zero_grad()
            head(encoded, tokens, TOKEN_LENS).per_item.sum().backward()
            optimizer.step()
        head.eval()
    return model_of(**heads)


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_says_what_was_learned(model, name):
    best = DECODERS[name](model, make_encoded())
    wanted = [row[:length].tolist() for row, length in zip(make_tokens(), TOKEN_LENS)]
    assert [hypotheses[0].tokens for hypotheses in best] == wanted
    assert all(sure > 0.3 for hypotheses in best for sure in hypotheses[0].confidences)
    for hypotheses, length in zip(best, LENS.tolist()):
        if (times := hypotheses[0].times) is not None:
            assert times == sorted(times)
            assert all(0 <= start < stop <= length * 0.04 + 1e-6 for start, stop in times)


def test_a_monotonic_transducer_learns_tokens_that_are_repeated():
    """Frames that sound alike, and a context of one token: Graves' lattice can not tell "4 4" from "4"."""
    texts = torch.tensor([[4, 4, 5], [5, 5, 5], [4, 5, 5], [5, 4, 4]])
    hidden = torch.zeros(4, 6, DIM)
    hidden[:, ::2] = torch.nn.functional.one_hot(texts, DIM).float()  # a token, silence, a token, ...
    encoded, lens = Encoded(hidden, torch.full((4,), 6)), torch.full((4,), 3)
    torch.manual_seed(0)
    head = TransducerHead(DIM, VOCAB, partial(StatelessPredictor, dim=8, context=1), joint_dim=16, monotonic=True)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        head(encoded, texts, lens).per_item.sum().backward()
        optimizer.step()
    (found,) = zip(*TransducerGreedy()(model_of(transducer=head.eval()), encoded))
    assert [hypothesis.tokens for hypothesis in found] == texts.tolist()

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
from components.models.asr.heads import AttentionHead, CtcHead, LstmPredictor, TransducerHead
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

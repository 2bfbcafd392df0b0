"""Every YAML of these heads and decoders builds what runs."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from components.models.asr.heads import AttentionHead, CtcHead, TransducerHead
from tests.components.asr_heads.batches import make_encoded, make_tokens, model_of
from utils.compose import CONFIGS

HEADS = {
    "attention": AttentionHead,
    "attention_aishell": AttentionHead,
    "attention_bidirectional": AttentionHead,
    "ctc": CtcHead,
    "transducer": TransducerHead,
    "transducer_large": TransducerHead,
    "transducer_lstm": TransducerHead,
}
DECODERS = [
    "attention_beam",
    "attention_rescoring",
    "attention_sampling",
    "joint_ctc_attention",
    "transducer_beam",
    "transducer_greedy",
]
LENS, TOKEN_LENS = torch.tensor([6, 4]), torch.tensor([2, 3])


def composed(group, name):
    with initialize_config_dir(str(Path(CONFIGS).resolve()), version_base=None):
        config = compose(f"{group}/{name}")
    for part in group.split("/"):
        config = config[part]
    return instantiate(config)


@pytest.mark.parametrize("name", HEADS)
def test_a_head_learns_by_its_config(name):
    torch.manual_seed(0)
    head = composed("model/asr_head", name)(hidden_dim=16, vocab_size=9)
    assert isinstance(head, HEADS[name])
    encoded = make_encoded(LENS, 16, layers=getattr(head, "layers", ()))
    output = head(encoded, make_tokens(TOKEN_LENS, 9), TOKEN_LENS)
    output.per_item.sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in head.parameters())


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_runs_by_its_config(name):
    decoder = composed("decoder", name)
    heads = {
        kind: composed("model/asr_head", kind)(hidden_dim=16, vocab_size=9).eval()
        for kind in ("ctc", "attention", "transducer")
    }
    best = decoder(model_of(**{kind: heads[kind] for kind in decoder.needs}), make_encoded(LENS, 16))
    assert len(best) == 2
    for hypotheses in best:
        scores = [hypothesis.score for hypothesis in hypotheses]
        assert scores
        assert scores == sorted(scores, reverse=True)

"""Learning rates by layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from components.models.asr.encoders import ConformerEncoder, PretrainedSpeechEncoder
from components.optim.layer_wise import layer_wise_groups
from utils.errors import UserError

from .test_pretrained import KINDS


class Recogniser(nn.Module):
    def __init__(self, encoder):
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(encoder.output_dim, 5)


def rates(module, groups):
    by_parameter = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    return {name: by_parameter[id(p)] for name, p in module.named_parameters() if id(p) in by_parameter}


def test_rates_fall_from_the_head_to_what_is_in_front_of_the_layers():
    model = Recogniser(ConformerEncoder(20, dim=16, num_layers=3, num_heads=2))
    found = rates(model, layer_wise_groups(model, lr=1.0, decay=0.5))
    assert len(found) == len(list(model.parameters()))
    assert found["head.weight"] == 1.0
    assert [found[f"encoder.layers.{i}.norm.weight"] for i in (2, 1, 0)] == [0.5, 0.25, 0.125]
    assert found["encoder.subsample.out.weight"] == 0.0625


@pytest.mark.parametrize("kind", ["wav2vec2, layer norm", "whisper"])
def test_transformers_encoders_have_layers_too(kind):
    width, arguments = KINDS[kind]
    pytest.importorskip("transformers")
    model = Recogniser(PretrainedSpeechEncoder(width, freeze_feature_extractor=True, **arguments))
    groups = layer_wise_groups(model, lr=1.0, decay=0.5)
    found = rates(model, groups)
    assert set(found) == {name for name, p in model.named_parameters() if p.requires_grad}
    assert sorted(set(found.values())) == ([0.125, 0.25, 0.5, 1.0] if kind != "whisper" else [0.25, 0.5, 1.0])
    torch.optim.AdamW(groups, lr=1.0).step()


def test_a_model_without_such_layers_is_told():
    with pytest.raises(UserError, match="no parameter is called like"):
        layer_wise_groups(nn.Linear(2, 2), lr=1.0)

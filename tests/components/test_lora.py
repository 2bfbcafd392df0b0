import copy
from functools import partial

import pytest
import torch
from diffusers import LongCatAudioDiTTransformer
from torch import nn

from components.layers import Lora, TrainOnly, add_lora, merge_lora
from components.models.audio_generator import Conditions, Dit, LongCatBackbone
from utils.errors import UserError

DIMS = {"latent_dim": 4, "vector_dim": 6, "sequence_dim": 6, "aligned_dim": 3}
LIBRARY = partial(LongCatAudioDiTTransformer, dit_dim=16, dit_depth=2, dit_heads=2, text_conv=False)
BACKBONES = {
    "dit": (partial(Dit, **DIMS, dim=16, depth=2, num_heads=2), ["blocks.*.attention.*"], 6),
    "longcat": (partial(LongCatBackbone, **DIMS, transformer=LIBRARY), ["*self_attn.to_[qkv]", "*ffn*0"], 8),
}


def make(name):
    torch.manual_seed(0)
    factory, patterns, count = BACKBONES[name]
    backbone = factory()
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return backbone, patterns, count


def make_batch():
    torch.manual_seed(1)
    return torch.randn(2, 5, 4), torch.rand(2), Conditions(torch.randn(2, 6), torch.randn(2, 3, 6), None,
                                                           torch.randn(2, 5, 3))  # fmt: skip


@pytest.mark.parametrize("name", BACKBONES)
def test_it_changes_nothing_at_first_learns_alone_and_melts_into_the_weights(name):
    backbone, patterns, count = make(name)
    batch, before = make_batch(), {key: value.clone() for key, value in backbone.state_dict().items()}
    expected = backbone(*batch)
    chosen = add_lora(backbone, patterns, rank=2, alpha=4)
    assert len(chosen) == count
    torch.testing.assert_close(backbone(*batch), expected)
    trained = [key for key, p in backbone.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * count
    assert all("parametrizations.weight.0" in key for key in trained)
    optimizer = torch.optim.AdamW([p for p in backbone.parameters() if p.requires_grad], lr=1e-2, weight_decay=0)
    for _ in range(3):
        backbone(*batch).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    learnt = copy.deepcopy(backbone)(*batch)
    assert (learnt - expected).abs().max() > 1e-3
    merge_lora(backbone)
    torch.testing.assert_close(backbone(*batch), learnt)
    after = backbone.state_dict()
    assert after.keys() == before.keys()
    assert {key for key in after if not torch.equal(after[key], before[key])} == {f"{key}.weight" for key in chosen}


def test_the_update_is_its_formula():
    layer = nn.Sequential(nn.Linear(5, 3))
    weight = layer[0].weight.detach().clone()
    add_lora(layer, ["0"], rank=2, alpha=6)
    update = layer[0].parametrizations.weight[0]
    nn.init.normal_(update.up)
    torch.testing.assert_close(layer[0].weight, weight + 3 * update.up @ update.down)


def test_a_pattern_of_nothing_is_told_and_leaves_all_as_it_was():
    layer = nn.Sequential(nn.Linear(5, 3), nn.ReLU())
    with pytest.raises(UserError, match=r"no linear layer or convolution is called '\*query\*'; there are 0"):
        add_lora(layer, ["0", "*query*"])
    assert layer[0].weight.requires_grad
    assert type(layer[0]) is nn.Linear


def test_a_convolution_has_one_too():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2, padding=1), nn.ReLU(), nn.Conv1d(6, 2, 5))
    assert add_lora(net, ["*"], rank=2) == ["0", "2"]
    update = net[0].parametrizations.weight[0]
    assert (update.up.shape, update.down.shape) == ((6, 2), (2, 2 * 3 * 3))
    nn.init.normal_(update.up)
    x = torch.randn(1, 4, 5, 7)
    expected = net[0](x)
    merge_lora(net)
    torch.testing.assert_close(net[0](x), expected)


def test_what_the_model_keeps_frozen_is_not_adapted():
    net = nn.ModuleDict({"codec": nn.Linear(3, 3).requires_grad_(False), "net": nn.Linear(3, 3)})
    assert add_lora(copy.deepcopy(net), ["*"]) == ["net"]
    with pytest.raises(UserError, match=r"what 'codec' names \(codec, ...\) is frozen by the model itself"):
        add_lora(net, ["codec"])
    with pytest.raises(UserError, match=r"adapt.patterns: what 'codec.\*' names \(codec.weight"):
        TrainOnly(["codec.*"])(net)


def test_a_shared_weight_is_refused():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    with pytest.raises(UserError, match="another layer shares the weight of 0"):
        add_lora(net, ["0"])


def test_beside_the_updates_what_is_named_trains_as_a_whole(caplog):
    net = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2))
    with caplog.at_level("INFO"):
        Lora(["0"], rank=2, also_train=["1.*", "2.bias"])(net)
    trained = {name for name, p in net.named_parameters() if p.requires_grad}
    update = "0.parametrizations.weight.0."
    assert trained == {f"{update}up", f"{update}down", "1.weight", "1.bias", "2.bias"}
    assert caplog.messages == [
        "LoRA of rank 2 in 0, and as a whole 1.weight, 1.bias, 2.bias: 42 of 98 parameters train"
    ]
    with pytest.raises(UserError, match=r"adapt.also_train: no parameter is called 'norm\*'; there are 0.bias"):
        Lora(["2"], also_train=["norm*"])(net)


def test_only_what_is_named_trains():
    net = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2))
    TrainOnly(["1.*", "*bias"])(net)
    assert [name for name, p in net.named_parameters() if p.requires_grad] == ["0.bias", "1.weight", "1.bias", "2.bias"]


def test_a_rank_of_none_is_refused():
    with pytest.raises(UserError, match="adapt: rank must be at least 1 and alpha above 0, got 0"):
        Lora(["*"], rank=0)

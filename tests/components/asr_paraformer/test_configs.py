"""Every YAML of ours is built; sizes are those of the recipes they are named for."""

from functools import partial
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from components.models.asr.types import Encoded

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
HEADS = sorted(path.stem for path in (CONFIGS / "model" / "asr_head").glob("paraformer*.yaml"))
DECODERS = sorted(path.stem for path in (CONFIGS / "decoder").glob("paraformer*.yaml"))
HIDDEN_DIM = {"paraformer_aishell": 256, "paraformer_large": 512}


def build(group, name):
    with initialize_config_dir(str(CONFIGS), version_base=None):
        node = compose(f"{group}/{name}")
    for part in group.split("/"):
        node = node[part]
    return instantiate(node)


def test_none_is_forgotten():
    assert len(HEADS) == 5
    assert len(DECODERS) == 3


@pytest.mark.parametrize("name", HEADS)
def test_heads_are_built_and_have_a_loss(name):
    make = build("model/asr_head", name)
    assert isinstance(make, partial)
    dim = HIDDEN_DIM.get(name, 32)
    with torch.device("meta" if dim > 100 else "cpu"):
        head = make(hidden_dim=dim, vocab_size=20)
    if dim > 100:
        millions = sum(p.numel() for p in head.parameters()) / 1e6
        assert {"paraformer_aishell": 9, "paraformer_large": 53}[name] == int(millions)
        return
    encoded = Encoded(torch.randn(2, 30, dim), torch.tensor([30, 20]))
    output = head(encoded, torch.randint(4, 20, (2, 6)), torch.tensor([6, 3]))
    output.per_item.sum().backward()
    assert output.per_item.shape == (2,)
    assert ("risk" in output.metrics) == (name == "paraformer_risk")


@pytest.mark.parametrize("name", DECODERS)
def test_decoders_are_built(name):
    assert build("decoder", name).needs == ("paraformer",)

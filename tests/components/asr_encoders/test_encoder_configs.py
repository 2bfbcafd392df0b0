"""Every encoder of the config tree, built, and those for a CPU run."""

from __future__ import annotations

import pytest
import torch
from omegaconf import OmegaConf

from utils.build import build
from utils.compose import CONFIGS
from utils.validate import validate

from .checks import count, noisy_batch

FOLDER = CONFIGS / "model/encoder"
# name -> (width of the features, thousands of parameters)
BUILT = {
    "conformer": (80, 776),
    "conformer_aishell": (80, 33_530),
    "hubert_tiny": (1, 150),
    "recurrent": (80, 143),
    "recurrent_2x192": (80, 530),
    "sanm": (560, 1_000),
    "sanm_large": (560, 158_000),
    "streaming_conformer": (80, 776),
    "transformer": (80, 730),
    "wav2vec2_bert_tiny": (160, 240),
    "wav2vec2_tiny": (1, 485),
    "wavlm_tiny": (1, 150),
    "whisper_tiny": (1, 220),
}
LARGE = {"conformer_aishell", "sanm_large"}


def read(name):
    config = OmegaConf.load(FOLDER / f"{name}.yaml")
    for entry in config.pop("defaults", []):
        if entry != "_self_":
            config = OmegaConf.merge(read(entry), config)
    return config


def test_every_file_is_here():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == {*BUILT, "pretrained"}


@pytest.mark.parametrize("name", [*BUILT, "pretrained"])
def test_a_config_names_only_what_there_is(name):
    assert validate(OmegaConf.create({"encoder": read(name)})) == []


@pytest.mark.parametrize("name", BUILT)
def test_an_encoder_is_built_with_the_size_it_says(name):
    width, thousands = BUILT[name]
    if "transformers" in str(read(name)) or "Pretrained" in read(name)._target_:
        pytest.importorskip("transformers")
    with torch.device("meta" if name in LARGE else "cpu"):
        encoder = build(OmegaConf.create({"encoder": read(name)}), "encoder")(input_dim=width)
    assert count(encoder) / 1000 == pytest.approx(thousands, rel=0.15)
    if name in LARGE:
        return
    lens = torch.tensor([100, 60]) * (160 if width == 1 else 1)
    encoded = encoder(noisy_batch(lens, width), lens)
    assert torch.equal(encoded.lens, encoder.output_lens(lens))
    assert encoded.hidden.shape == (2, int(encoded.lens.max()), encoder.output_dim)
    encoded.hidden.sum().backward()

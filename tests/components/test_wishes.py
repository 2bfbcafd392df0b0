"""Wishes without a corpus, and about recordings."""

import pytest
import torch

from components.data import PadCollate
from components.data.generation import Wishes
from tests.components.clips import write_clip
from utils.errors import BadSample, UserError


def test_a_wish_is_an_item_on_an_empty_canvas():
    items = Wishes(["say one", "say two"], 8_000, 0.5)
    batch = PadCollate()([items[0], items[1]])
    assert len(items) == 2
    assert batch["instruction"] == ["say one", "say two"]
    assert batch["waveform"].shape == (2, 1, 4_000)
    assert not batch["waveform"].any()
    assert "source_waveform" not in batch


def test_every_recording_is_wished_every_wish(tmp_path):
    for number, seconds in enumerate((0.3, 0.5)):
        write_clip(tmp_path / f"{number}.wav", seconds, 16_000, seed=number)
    items = Wishes(["clean it", "make it bright"], 8_000, 0.5, str(tmp_path))
    assert len(items) == 4
    assert len({items[i]["id"] for i in range(4)}) == 4
    assert [items[i]["instruction"] for i in range(4)] == ["clean it", "make it bright"] * 2
    first = items[0]["source_waveform"]
    assert first.shape == (1, 4_000)
    assert not first[:, 2_400:].any()
    assert first[:, :2_400].square().mean().sqrt() == pytest.approx(0.1, rel=0.1)
    assert torch.equal(items[1]["source_waveform"], first)


def test_what_can_not_be_wished_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match="prompt: there is nothing to wish for"):
        Wishes(["say one", " "], 8_000, 0.5)
    write_clip(tmp_path / "long.wav", 1.0, 8_000, seed=0)
    with pytest.raises(BadSample, match=r"long.wav has 1.00 s, the model makes 0.50 s"):
        Wishes("clean it", 8_000, 0.5, str(tmp_path / "long.wav"))[0]

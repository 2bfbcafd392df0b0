"""Conditions that a record holds."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from components.data import AudioDataset
from components.data.generation import InstructedDataset, Phonemes, RecordText, Score, StoredFeatures
from tests.components.generation_data.sounds import SPEECH, clip_of
from utils.errors import BadSample


def test_phonemes_have_ids_and_durations_and_are_cut_with_the_target():
    record = {"phonemes": "sil s eh v ah n", "phoneme_durations": [0.1, 0.1, 0.1, 0.1, 0.1, 0.1]}
    task = Phonemes(["sil", "s", "eh", "v", "ah", "n"])
    made = task(clip_of(torch.zeros(1, 4800), **record))
    assert made["phonemes"].tolist() == [0, 1, 2, 3, 4, 5]
    assert made["phoneme_durations"].tolist() == pytest.approx([0.1] * 6)
    cropped = task(clip_of(torch.zeros(1, 2000), start=0.15, **record))
    assert cropped["phonemes"].tolist() == [1, 2, 3]
    assert cropped["phoneme_durations"].tolist() == pytest.approx([0.05, 0.1, 0.1], abs=1e-6)
    assert cropped["phoneme_durations"].sum() == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({}, "no phonemes"),
        ({"phonemes": ["s", "zz"]}, "unknown phoneme zz"),
        ({"phonemes": "s s"}, "no phoneme_durations"),
        ({"phonemes": "s s", "phoneme_durations": [0.1]}, "bad phoneme_durations"),
        ({"phonemes": "s s", "phoneme_durations": [0.1, -0.1]}, "bad phoneme_durations"),
        ({"phonemes": "s s", "phoneme_durations": "long"}, "bad phoneme_durations"),
    ],
)
def test_records_without_usable_phonemes_are_named(record, reason):
    with pytest.raises(BadSample) as caught:
        Phonemes(["s"])(clip_of(torch.zeros(1, 800), **record))
    assert (caught.value.reason, caught.value.sample_id) == (reason, "a")


def test_a_score_brings_notes_and_is_not_cropped():
    record = {"phonemes": ["l", "a"], "phoneme_durations": [0.1, 0.4], "notes": [60, 60], "slurs": [0, 1]}
    record |= {"note_durations": [0.5, 0.5]}
    task = Score(["l", "a"])
    made = task(clip_of(torch.zeros(1, 4000), **record))
    assert made["notes"].tolist() == [60, 60]
    assert made["slurs"].dtype == torch.int64
    assert set(made) == set(task.kinds)
    with pytest.raises(BadSample, match="can not be cropped"):
        task(clip_of(torch.zeros(1, 800), start=0.1, **record))


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
def test_stored_features_are_cut_with_the_target(tmp_path, suffix):
    frames = torch.arange(100.0).unsqueeze(1).repeat(1, 3)
    if suffix == ".npy":
        np.save(tmp_path / "v.npy", frames.numpy())
    else:
        save_file({"video": frames}, tmp_path / "v.safetensors")
    record = {"features_path": f"v{suffix}", "features_key": "video"}
    task = StoredFeatures(3, frame_rate=25.0, stream="video")
    made = task(clip_of(torch.zeros(1, 8000), start=2.0, folder=tmp_path, **record))["video"]
    assert torch.equal(made, frames[50:75])
    with pytest.raises(BadSample, match="ends before 5"):
        task(clip_of(torch.zeros(1, 8000), start=5.0, folder=tmp_path, **record))
    with pytest.raises(BadSample, match=r"not \[L, 4\]"):
        StoredFeatures(4, 25.0)(clip_of(torch.zeros(1, 8000), folder=tmp_path, **record))
    with pytest.raises(BadSample, match="cannot read"):
        task(clip_of(torch.zeros(1, 8000), folder=tmp_path / "elsewhere", **record))


def test_stored_features_do_not_run_pickles(tmp_path):
    np.save(tmp_path / "v.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(BadSample, match="cannot read"):
        StoredFeatures(1, 25.0)(clip_of(torch.zeros(1, 800), folder=tmp_path, features_path="v.npy"))


def test_a_text_may_come_from_a_label_and_may_be_optional():
    clip = clip_of(torch.zeros(1, 800), labels={"word": "seven"})
    assert RecordText("word", stream="text")(clip) == {"text": "seven"}
    assert RecordText("caption", optional=True)(clip) == {}
    with pytest.raises(BadSample, match="has no 'caption'"):
        RecordText("caption")(clip)


@pytest.mark.skipif(not SPEECH.is_dir(), reason="needs the shared speech")
def test_phones_of_recorded_speech_are_read():
    lines = (SPEECH / "manifest_train.jsonl").read_text().splitlines()
    records = [record for record in map(json.loads, lines) if "phonemes" in record]
    symbols = sorted({phone for record in records for phone in record["phonemes"].split()})
    dataset = InstructedDataset(
        AudioDataset(SPEECH / "manifest_train.jsonl", 16_000, fields=["phonemes"]),
        "phonemes_to_speech", ["say these sounds like {speaker}"], {"content": Phonemes(symbols, durations=False)},
    )  # fmt: skip
    assert len(dataset) == len(records) == 7
    item = dataset[0]
    assert [symbols[k] for k in item["phonemes"].tolist()] == records[0]["phonemes"].split()
    assert item["instruction"] == f"say these sounds like {records[0]['speaker']}"

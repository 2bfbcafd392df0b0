import numpy as np
import pytest
import torch

from components.data import AudioDataset, ConcatDataset, DynamicBatchSampler, PadCollate, write_manifest
from components.data.samplers import lengths_of
from components.data.transcribed import TranscribedDataset
from components.text import CharTokenizer, Normalize, PhonemeTokenizer
from tests.components.clips import write_clip
from utils.errors import BadSample, UserError

TOKENIZER = CharTokenizer("abcdefghijklmnopqrstuvwxyz ", Normalize(case="lower", punctuation="remove"))
TEXTS = ["One, two", "three", "a much longer text"]


def corpus(folder, texts=TEXTS, **fields):
    records = []
    for i, text in enumerate(texts):
        write_clip(folder / f"{i}.wav", 0.2 + i / 10, 8_000)
        record = {"id": f"c{i}", "audio_path": f"{i}.wav", "duration": 0.2 + i / 10, "sample_rate": 8_000, **fields}
        records.append(record if text is None else record | {"text": text})
    write_manifest(folder / "clips.jsonl", records)
    return folder / "clips.jsonl"


def test_an_item_has_its_tokens_and_its_text(tmp_path):
    dataset = TranscribedDataset(
        AudioDataset(corpus(tmp_path, speaker="ann"), 8_000), TOKENIZER, fields=["speaker", "room"]
    )
    item = dataset[0]
    assert item["text"] == "one two"
    assert item["tokens"].dtype == torch.int64
    assert item["tokens"].tolist() == TOKENIZER.encode("one two")
    assert item["waveform"].shape == (1, 1600)
    assert (item["speaker"], item["room"], item["id"]) == ("ann", None, "c0")


def test_a_batch_is_padded_with_what_losses_leave_out(tmp_path):
    dataset = TranscribedDataset(AudioDataset(corpus(tmp_path), 8_000), TOKENIZER)
    batch = PadCollate(pad_values={"tokens": -100})([dataset[0], dataset[1]])
    assert batch["token_lens"].tolist() == [7, 5]
    assert batch["tokens"][1].tolist() == [*TOKENIZER.encode("three"), -100, -100]
    assert batch["text"] == ["one two", "three"]


def test_samplers_and_runs_see_what_the_dataset_knows(tmp_path):
    inner = AudioDataset(corpus(tmp_path), 8_000, augment={})
    dataset = TranscribedDataset(inner, TOKENIZER)
    assert lengths_of(dataset).tolist() == inner.durations.tolist()
    assert lengths_of(dataset, "text").tolist() == [8, 5, 18]
    assert not dataset.deterministic
    assert TranscribedDataset(AudioDataset(tmp_path / "clips.jsonl", 8_000), TOKENIZER).deterministic
    assert dataset.fingerprint()["tokenizer"] == TOKENIZER.fingerprint
    assert dataset.sample_rate == 8_000
    assert sum(map(len, DynamicBatchSampler(dataset, max_seconds=0.5))) == 3


def test_long_transcripts_are_left_out_and_counted(tmp_path):
    dataset = TranscribedDataset(AudioDataset(corpus(tmp_path), 8_000), TOKENIZER, max_tokens=7)
    assert len(dataset) == 2
    assert dataset.dropped == {"more than 7 tokens": 1}
    assert np.allclose(dataset.durations, [0.2, 0.3])
    assert [record["id"] for record in dataset.records] == ["c0", "c1"]
    assert [dataset[i]["id"] for i in range(2)] == ["c0", "c1"]
    assert dataset.fingerprint()["num_items"] == 2
    assert dataset.fingerprint()["dropped"] == {"more than 7 tokens": 1}
    with pytest.raises(UserError, match="max_tokens=2: every transcript of"):
        TranscribedDataset(AudioDataset(tmp_path / "clips.jsonl", 8_000), TOKENIZER, max_tokens=2)


def test_indices_stay_with_their_clips_when_the_middle_is_left_out(tmp_path):
    path = corpus(tmp_path, ["short", "a much longer text", "brief"])
    dataset = TranscribedDataset(AudioDataset(path, 8_000), TOKENIZER, max_tokens=7)
    assert [(dataset[i]["id"], dataset[i]["text"]) for i in range(2)] == [("c0", "short"), ("c2", "brief")]


@pytest.mark.parametrize("text", ["...", " ", None])
def test_a_transcript_of_nothing_is_a_bad_sample(tmp_path, text):
    dataset = TranscribedDataset(AudioDataset(corpus(tmp_path, ["one", text]), 8_000), TOKENIZER, max_tokens=10)
    assert dataset[0]["text"] == "one"
    with pytest.raises(BadSample, match=r"c1 of .* has no transcript in 'text'") as raised:
        dataset[1]
    assert (raised.value.sample_id, raised.value.reason) == ("c1", "empty transcript")


def test_a_collection_without_any_transcript_is_to_be_recognised(tmp_path):
    dataset = TranscribedDataset(AudioDataset(corpus(tmp_path, [None, None]), 8_000), TOKENIZER)
    assert set(dataset[0]) == {"id", "waveform", "targets", "seed"}
    with pytest.raises(UserError, match=r"field: no record of .* has 'text', and there is nothing to learn from"):
        TranscribedDataset(AudioDataset(tmp_path / "clips.jsonl", 8_000, augment={}), TOKENIZER)


def test_lists_of_phones_are_transcripts_too(tmp_path):
    phones = PhonemeTokenizer(["tʃ", "iː"])
    dataset = TranscribedDataset(AudioDataset(corpus(tmp_path, phonemes=["tʃ", "iː", "x"]), 8_000), phones, "phonemes")
    assert dataset[0]["tokens"].tolist() == [4, 5, 1]
    assert dataset[0]["text"] == "tʃ iː x"


def test_several_corpora_may_lie_inside(tmp_path):
    parts = {"one": AudioDataset(corpus(tmp_path / "a"), 8_000), "two": AudioDataset(corpus(tmp_path / "b"), 8_000)}
    dataset = TranscribedDataset(ConcatDataset(parts), TOKENIZER, max_tokens=7)
    assert [item["text"] for item in map(dataset.__getitem__, range(4))] == ["one two", "three"] * 2
    assert dataset.durations.tolist() == pytest.approx([0.2, 0.3] * 2)

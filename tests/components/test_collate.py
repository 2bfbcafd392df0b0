"""Items of any kind to padded batches, and several datasets as one."""

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from components.data.collate import PadCollate
from components.data.concat import ConcatDataset
from utils.errors import UserError


def test_waveforms_features_and_tokens_have_lengths_of_their_own_names():
    items = [
        {"waveform": torch.ones(1, 5 * n), "features": torch.ones(n, 3), "tokens": torch.arange(n), "id": str(n)}
        for n in (2, 4)
    ]
    batch = PadCollate(pad_values={"tokens": -1})(items)
    assert {name: list(value.shape) for name, value in batch.items() if name != "id"} == {
        "waveform": [2, 1, 20], "audio_lens": [2], "features": [2, 4, 3], "feature_lens": [2], "tokens": [2, 4],
        "token_lens": [2],
    }  # fmt: skip
    assert batch["audio_lens"].tolist() == [10, 20]
    assert batch["feature_lens"].tolist() == batch["token_lens"].tolist() == [2, 4]
    assert batch["tokens"].tolist() == [[0, 1, -1, -1], [0, 1, 2, 3]]
    assert batch["features"][0].sum() == 6
    assert batch["waveform"][0, 0, 10:].abs().sum() == 0
    assert batch["audio_lens"].dtype == batch["token_lens"].dtype == torch.int64


def test_other_waveforms_are_padded_along_time_too():
    items = [{"clean_waveform": torch.ones(2, n), "chroma": torch.ones(12, n)} for n in (3, 5)]
    batch = PadCollate(time_last=["chroma"])(items)
    assert batch["clean_waveform"].shape == (2, 2, 5)
    assert batch["clean_waveform_lens"].tolist() == batch["chroma_lens"].tolist() == [3, 5]
    assert batch["chroma"].shape == (2, 12, 5)


def test_arrays_and_lists_of_numbers_become_tensors_where_asked():
    items = [{"energy": np.ones(n, dtype=np.float32), "tokens": [1] * n, "words": ["a"] * n} for n in (1, 3)]
    batch = PadCollate(pad_values={"tokens": 0})(items)
    assert batch["energy"].dtype == torch.float32
    assert batch["tokens"].tolist() == [[1, 0, 0], [1, 1, 1]]
    assert batch["words"] == [["a"], ["a", "a", "a"]]
    assert PadCollate()(items)["tokens"] == [[1], [1, 1, 1]]


def test_padded_lengths_are_multiples_where_asked():
    items = [{"features": torch.ones(n, 3), "waveform": torch.ones(1, n)} for n in (5, 9)]
    batch = PadCollate(pad_to_multiple_of={"features": 8})(items)
    assert batch["features"].shape == (2, 16, 3)
    assert batch["feature_lens"].tolist() == [5, 9]
    assert batch["waveform"].shape == (2, 1, 9)


def test_batches_of_several_tasks_say_who_has_what():
    asr = {
        "id": "a",
        "waveform": torch.ones(1, 4),
        "tokens": torch.ones(3, dtype=torch.int64),
        "text": "yes",
        "f0": 2.0,
    }
    tagging = {"id": "b", "waveform": torch.ones(1, 2), "targets": {"sound": 3}}
    collate = PadCollate(optional=["tokens", "text", "targets", "f0", "caption"])
    batch = collate([asr, tagging])
    assert batch["has_tokens"].tolist() == batch["has_text"].tolist() == batch["has_f0"].tolist() == [True, False]
    assert batch["has_targets"].tolist() == [False, True]
    assert batch["tokens"].tolist() == [[1, 1, 1], [0, 0, 0]]
    assert batch["token_lens"].tolist() == [3, 0]
    assert batch["targets"]["sound"].tolist() == [-100, 3]
    assert batch["text"] == ["yes", None]
    assert batch["f0"].tolist() == [2.0, 0.0]
    assert batch["has_caption"].tolist() == [False, False]
    assert "caption" not in batch
    only = collate([asr, asr])
    assert only["has_targets"].tolist() == [False, False]
    assert "targets" not in only
    assert batch.keys() - only.keys() == {"targets"}


def test_an_item_without_its_waveform_has_length_zero():
    batch = PadCollate(optional=["waveform"])([{"id": "sound", "waveform": torch.ones(1, 4)}, {"id": "text only"}])
    assert batch["audio_lens"].tolist() == [4, 0]
    assert batch["waveform"].shape == (2, 1, 4)


def test_targets_of_different_corpora_are_joined():
    batch = PadCollate()([{"targets": {"word": 1}}, {"targets": {"speaker": 2}}])
    assert {name: values.tolist() for name, values in batch["targets"].items()} == {
        "word": [1, -100], "speaker": [-100, 2],
    }  # fmt: skip


def test_a_field_that_only_some_items_have_is_named():
    with pytest.raises(UserError, match=r"item 'b' has no 'text', others .* optional: \[text\]"):
        PadCollate()([{"id": "a", "text": "yes"}, {"id": "b"}])


class Part(Dataset):
    def __init__(self, *durations):
        self.durations = list(durations)

    def __len__(self):
        return len(self.durations)

    def __getitem__(self, index):
        return {"index": index}

    def set_epoch(self, epoch):
        self.epoch = epoch


def test_items_of_a_concatenation_say_where_they_are_from():
    data = ConcatDataset({"asr": Part(1.0, 2.0), "tagging": Part(3.0)}, name_key="task")
    assert [data[index] for index in (0, 1, 2, -1)] == [
        {"index": 0, "task": "asr"}, {"index": 1, "task": "asr"}, {"index": 0, "task": "tagging"},
        {"index": 0, "task": "tagging"},
    ]  # fmt: skip
    assert data.durations.tolist() == [1.0, 2.0, 3.0]
    assert ConcatDataset([Part(1.0), Part(2.0)])[1] == {"index": 0}


def test_a_concatenation_tells_its_parts_the_epoch():
    parts = [Part(1.0), Part(2.0)]
    ConcatDataset(parts).set_epoch(4)
    assert [part.epoch for part in parts] == [4, 4]

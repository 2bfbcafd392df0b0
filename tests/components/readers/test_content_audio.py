import json

import h5py
import numpy as np
import pytest

from components.data.readers import read_records
from tests.components.clips import write_clip
from utils.errors import UserError


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def collection(folder):
    write_clip(folder / "a.wav", 0.5)
    write_clip(folder / "b.wav", 0.25)
    write(
        folder / "audio.jsonl", {"audio_id": "a", "audio": "a.wav", "duration": 0.5}, {"audio_id": 7, "audio": "b.wav"}
    )
    write(
        folder / "content.jsonl",
        {"audio_id": 7, "caption": "rain", "noisy_speech": "noisy/b.wav"},
        {"audio_id": "a", "caption": "a dog"},
        {"audio_id": "a", "caption": "a dog barks"},
    )
    return folder


def test_the_two_files_are_joined_in_the_order_of_the_contents(tmp_path):
    records = read_records(collection(tmp_path))
    assert [(r["id"], r["caption"], r["duration"]) for r in records] == [
        ("7", "rain", 0.25),
        ("a", "a dog", 0.5),
        ("a#2", "a dog barks", 0.5),
    ]
    assert records[0]["audio_path"] == f"{tmp_path}/b.wav"
    assert records[0]["noisy_speech"] == f"{tmp_path}/noisy/b.wav"
    assert "audio" not in records[0]


def test_files_may_lie_apart_and_be_joined_on_another_key(tmp_path):
    (tmp_path / "lists").mkdir()
    audio = write(
        tmp_path / "lists" / "sound.jsonl", {"uid": "a", "audio": "/x/a.wav"}, {"uid": "b", "audio": "/x/b.wav"}
    )
    content = write(tmp_path / "speech.jsonl", {"uid": "a", "phonemes": ["h", "ai"]})
    condition = write(tmp_path / "who.jsonl", {"uid": "a", "speaker": "bob"})
    files = {"content": content, "audio": audio, "condition": condition}
    assert list(read_records(files, fill=False, id_key="uid")) == [
        {"id": "a", "audio_path": "/x/a.wav", "phonemes": ["h", "ai"], "speaker": "bob"}
    ]
    with pytest.raises(UserError, match="has the keys content, audio and maybe condition, not text"):
        read_records({"text": content})


def test_audio_without_content_is_counted_and_content_without_audio_named(tmp_path, caplog):
    folder = collection(tmp_path)
    write(folder / "content.jsonl", {"audio_id": "a", "caption": "a dog"}, {"audio_id": "z", "caption": "?"})
    with pytest.raises(UserError, match=r"content.jsonl:2: audio_id 'z' is not in .*audio.jsonl"):
        read_records(folder)
    bad = []
    assert len(read_records(folder, on_bad=bad.append)) == 1
    assert [b["reason"] for b in bad] == ["no audio for its audio_id"]
    assert "1 of 2 clips have no content" in caplog.text


def test_bad_lines_of_the_audio_list_are_named(tmp_path):
    folder = collection(tmp_path)
    with (folder / "audio.jsonl").open("a") as file:
        file.write('{"audio": "c.wav"}\n{"audio_id": "a", "audio": "c.wav"}\nnot json\n')
    bad = []
    assert len(read_records(folder, on_bad=bad.append)) == 3
    assert [(b["source"].rpartition(":")[2], b["reason"]) for b in bad] == [
        ("3", "no audio_id"), ("4", "duplicate id"), ("5", "not valid JSON"),
    ]  # fmt: skip


def test_audio_in_hdf5_is_a_member_called_by_its_id(tmp_path):
    with h5py.File(tmp_path / "audio.h5", "w") as file:
        file["a"] = np.zeros(12_000, dtype=np.float32)
        file["sample_rate"] = 24_000
    write(tmp_path / "audio.jsonl", {"audio_id": "a", "audio": "audio.h5"})
    write(tmp_path / "content.jsonl", {"audio_id": "a", "caption": "nothing"})
    record = read_records(tmp_path)[0]
    assert record == {
        "id": "a", "audio_path": f"{tmp_path}/audio.h5", "member": "a", "duration": 0.5, "sample_rate": 24_000,
        "caption": "nothing",
    }  # fmt: skip

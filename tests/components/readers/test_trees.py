import os

import pytest

from components.data.readers import read_records
from tests.components.clips import write_clip
from utils.errors import UserError


def librispeech(root):
    for speaker, chapter, texts in [("84", "121123", ["GO ON", "YES"]), ("9", "1", ["HI"])]:
        folder = root / "dev-clean" / speaker / chapter
        names = [f"{speaker}-{chapter}-{i:04d}" for i in range(len(texts))]
        for name in names:
            write_clip(folder / f"{name}.flac", 0.1)
        lines = [f"{name} {text}\n" for name, text in zip(names, texts)]
        (folder / f"{speaker}-{chapter}.trans.txt").write_text("".join(lines))
    return root


def test_librispeech_gives_text_speaker_chapter_and_split(tmp_path):
    root = librispeech(tmp_path / "LibriSpeech")
    records = read_records(root)
    assert [(r["id"], r["text"]) for r in records] == [
        ("84-121123-0000", "GO ON"),
        ("84-121123-0001", "YES"),
        ("9-1-0000", "HI"),
    ]
    audio = f"{root}/dev-clean/84/121123/84-121123-0000.flac"
    place = {"audio_path": audio, "duration": 0.1, "sample_rate": 16000}
    about = {"speaker": "84", "chapter": "121123", "split": "dev-clean"}
    assert records[0] == {"id": "84-121123-0000", "text": "GO ON"} | place | about
    assert len(read_records(root / "dev-clean")) == 3
    assert read_records(root / "dev-clean" / "9" / "1")[0]["speaker"] == "9"


def test_a_transcript_without_audio_is_named(tmp_path):
    root = librispeech(tmp_path)
    os.remove(root / "dev-clean" / "84" / "121123" / "84-121123-0000.flac")
    with pytest.raises(UserError, match=r"84-121123.trans.txt:1: no audio of '84-121123-0000' lies beside"):
        read_records(root)
    assert len(read_records(root, on_bad=lambda bad: None)) == 2


def test_sub_folders_are_labels(tmp_path):
    write_clip(tmp_path / "yes" / "deep" / "a.wav", 0.2)
    write_clip(tmp_path / "no" / "a.wav", 0.1)
    write_clip(tmp_path / "no" / "a.flac", 0.1)
    write_clip(tmp_path / "top.wav", 0.1)
    (tmp_path / "no" / "a.txt").write_text("nope\n")
    (tmp_path / "directory.wav").mkdir()
    (tmp_path / ".hidden.wav").write_text("no audio")
    records = read_records(tmp_path, target="word")
    assert [(r["id"], r.get("labels"), r.get("text")) for r in records] == [
        ("top", None, None),
        ("no/a.flac", {"word": "no"}, "nope"),
        ("no/a.wav", {"word": "no"}, "nope"),
        ("yes/deep/a", {"word": "yes"}, None),
    ]
    assert records[3]["duration"] == pytest.approx(0.2)


def test_single_files_and_globs_of_files_are_read(tmp_path):
    names = [write_clip(tmp_path / f"{i}, 'quote' & é.wav", 0.1) for i in range(2)]
    assert read_records(names[0])[0]["id"] == "0, 'quote' & é"
    assert [r["audio_path"] for r in read_records(f"{tmp_path}/*.wav")] == [str(name) for name in names]


def test_bad_files_of_a_folder_are_left_out(tmp_path):
    write_clip(tmp_path / "good.wav", 0.1)
    (tmp_path / "video.m4a").write_bytes(b"....ftyp")
    (tmp_path / "broken.wav").symlink_to(tmp_path / "gone.wav")
    bad = []
    assert [r["id"] for r in read_records(tmp_path, on_bad=bad.append)] == ["good"]
    assert [b["reason"] for b in bad] == ["no such file", ".m4a audio"]


def test_a_folder_without_audio_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("no audio")
    with pytest.raises(UserError, match="is of no layout that is known"):
        read_records(tmp_path)

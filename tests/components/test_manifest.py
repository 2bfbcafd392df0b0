import json
from pathlib import Path

import pytest

from components.data import read_manifest, write_manifest
from components.data.manifest import audio_files
from tests.components.clips import write_clip
from utils.errors import UserError

HOSTILE = Path("../shared/data/hostile_audio/manifests")
RECORD = {"id": "a", "audio_path": "a.wav", "duration": 1.5, "sample_rate": 16000}


def write(folder, *lines):
    path = folder / "m.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def test_what_is_written_is_read_back(tmp_path):
    records = [RECORD, RECORD | {"id": "имя 'quote'", "labels": {"word": "да"}, "other": [1, 2]}]
    write_manifest(tmp_path / "deep" / "m.jsonl", records)
    assert read_manifest(tmp_path / "deep" / "m.jsonl") == records
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["m.jsonl"]


def test_a_failed_write_leaves_the_old_manifest(tmp_path):
    write_manifest(tmp_path / "m.jsonl", [RECORD])

    def broken():
        yield RECORD | {"id": "b"}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_manifest(tmp_path / "m.jsonl", broken())
    assert read_manifest(tmp_path / "m.jsonl") == [RECORD]


def test_a_name_in_gz_is_compressed_and_the_same_each_time(tmp_path):
    for name in ("one.jsonl.gz", "two.jsonl.gz"):
        write_manifest(tmp_path / name, iter([RECORD]))
    assert read_manifest(tmp_path / "one.jsonl.gz") == [RECORD]
    assert (tmp_path / "one.jsonl.gz").read_bytes() == (tmp_path / "two.jsonl.gz").read_bytes()


def test_a_byte_order_mark_and_blank_lines_are_no_error(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(RECORD).encode() + b"\r\n\r\n")
    assert read_manifest(path) == [RECORD]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"id": "a",}', "not valid JSON"),
        ("[1]", "expected a JSON object, found list"),
        ({k: v for k, v in RECORD.items() if k != "duration"}, "the key 'duration' is missing"),
        (RECORD | {"duration": "1 s"}, "'duration' has an unusable value"),
        (RECORD | {"duration": float("nan")}, "'duration' must be a positive number"),
        (RECORD | {"sample_rate": 0}, "'sample_rate' must be a positive number"),
        (RECORD | {"labels": "yes"}, "'labels' must map targets to class names"),
        (RECORD, "id 'a' was used in line 1 already"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, complaint):
    path = write(tmp_path, RECORD, line)
    with pytest.raises(UserError, match=f"{path}:2: {complaint}"):
        read_manifest(path)


def test_a_missing_or_empty_manifest_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"cannot read the manifest .*nowhere.jsonl: No such file"):
        read_manifest(tmp_path / "nowhere.jsonl")
    with pytest.raises(UserError, match="holds no clip"):
        read_manifest(write(tmp_path, ""))


@pytest.mark.skipif(not HOSTILE.is_dir(), reason="needs the shared hostile manifests")
@pytest.mark.parametrize("name", ["malformed", "nan_duration", "latin1_bytes", "utf16", "empty"])
def test_hostile_manifests_are_user_errors(name):
    with pytest.raises(UserError, match=f"{name}.jsonl"):
        read_manifest(HOSTILE / f"{name}.jsonl")


def test_audio_files_are_found_in_files_and_folders_in_order(tmp_path):
    two = write_clip(tmp_path / "b" / "two.wav", 0.2)
    one = write_clip(tmp_path / "b" / "deep" / "one.flac", 0.1)
    (tmp_path / "b" / "notes.txt").write_text("no audio")
    single = write_clip(tmp_path / "z.wav")
    assert audio_files([single, tmp_path / "b"]) == [single, one, two]


def test_a_search_for_audio_names_what_is_not_there(tmp_path):
    with pytest.raises(UserError, match="nowhere does not exist"):
        audio_files(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no audio files"):
        audio_files(tmp_path)

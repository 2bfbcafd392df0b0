import io
import json
import tarfile

import h5py
import numpy as np
import pytest
import soundfile

from components.data.readers import read_records
from components.data.stored import stored_bytes
from tests.components.clips import write_clip
from utils.errors import UserError


def write_tar(path, members, mode="w"):
    with tarfile.open(path, mode) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def clip_bytes(folder, name="x.flac", seconds=0.25, seed=0):
    return write_clip(folder / name, seconds, seed=seed).read_bytes()


def test_tar_members_of_one_key_are_one_record_and_are_read_by_seeking(tmp_path):
    one, two = clip_bytes(tmp_path, "1.flac"), clip_bytes(tmp_path, "2.wav", 0.5, 1)
    about = {"text": "hi", "duration": 0.25, "sample_rate": 16000, "audio_path": "/gone/x.flac", "offset": 3}
    members = [("d/a.flac", one), ("d/a.json", json.dumps(about).encode()), ("d/a.jpg", b"x")]
    members += [("b.txt", "привет".encode()), ("b.wav", two)]
    path = write_tar(tmp_path / "shard.tar", members)
    first, second = read_records(path)
    assert first.items() >= {"id": "d/a", "text": "hi", "duration": 0.25, "audio_path": str(path)}.items()
    assert "offset" not in first
    assert second.items() >= {"id": "b", "text": "привет", "duration": 0.5, "sample_rate": 16000}.items()
    for record, content in [(first, one), (second, two)]:
        assert stored_bytes(str(path), record["byte_offset"], record["num_bytes"]) == content


def test_shards_are_read_from_a_folder_or_a_glob_and_ids_are_theirs_alone(tmp_path):
    content = clip_bytes(tmp_path / "clips")
    for shard, key in [(1, "b"), (0, "a")]:
        write_tar(tmp_path / f"{shard}.tar", [(f"{key}.flac", content)])
    assert [r["id"] for r in read_records(tmp_path)] == ["a", "b"]
    assert [r["id"] for r in read_records(f"{tmp_path}/*.tar")] == ["a", "b"]
    write_tar(tmp_path / "2.tar", [("a.flac", content)])
    with pytest.raises(UserError, match=r"2.tar:a: id 'a' was used already in .*0.tar:a"):
        read_records(tmp_path)


def test_long_and_foreign_member_names_are_kept(tmp_path):
    key = "довольно/" + "x" * 200
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        content = clip_bytes(tmp_path)
        with tarfile.open(tmp_path / "s.tar", "w", format=form) as tar:
            info = tarfile.TarInfo(f"{key}.flac")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        record = read_records(tmp_path / "s.tar")[0]
        assert record["id"] == key
        assert stored_bytes(record["audio_path"], record["byte_offset"], record["num_bytes"]) == content


@pytest.mark.parametrize(("mode", "packer"), [("w:gz", "gzip"), ("w:bz2", "bzip2"), ("w:xz", "xz")])
def test_compressed_tars_are_refused(tmp_path, mode, packer):
    path = write_tar(tmp_path / "shard.tar", [("a.flac", clip_bytes(tmp_path))], mode)
    with pytest.raises(UserError, match=rf"shard.tar is compressed \({packer}\).*unpack it"):
        read_records(path)


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([("b.json", b"{}")], "not one audio member"),
        ([("b.near.wav", b"1"), ("b.far.wav", b"2")], "not one audio member"),
        ([("b.wav", b"<html>")], "a web page"),
        ([("b.wav", b"noise")], "unreadable audio"),
        ([("b.json", b"{"), ("b.wav", b"x")], "not valid JSON"),
    ],
)
def test_bad_members_are_left_out(tmp_path, members, reason):
    path = write_tar(tmp_path / "s.tar", [("a.flac", clip_bytes(tmp_path)), *members])
    bad = []
    assert [r["id"] for r in read_records(path, on_bad=bad.append)] == ["a"]
    assert [(b["source"], b["reason"]) for b in bad] == [(f"{path}:b", reason)]


def test_a_tar_cut_short_keeps_what_is_whole(tmp_path):
    content = clip_bytes(tmp_path, seconds=1.0)
    path = write_tar(tmp_path / "s.tar", [("a.flac", content), ("b.flac", content)])
    path.write_bytes(path.read_bytes()[: len(content) + 3000])
    bad = []
    assert [r["id"] for r in read_records(path, on_bad=bad.append)] == ["a"]
    assert [b["reason"] for b in bad] == ["a damaged tar"]
    (tmp_path / "no.tar").write_text("not a tar, but a text that is long enough" * 100)
    with pytest.raises(UserError, match=r"no.tar: not a tar"):
        read_records(tmp_path / "no.tar")


def test_hdf5_datasets_are_records_with_their_attributes(tmp_path):
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file.attrs["sample_rate"] = 8_000
        samples = file.create_dataset("spk/one", data=np.zeros(4_000, dtype=np.int16))
        samples.attrs["text"] = "hi"
        samples.attrs["json"] = json.dumps({"labels": {"word": "yes"}})
        stereo = file.create_dataset("two", data=np.zeros((2, 8_000), dtype=np.float32))
        stereo.attrs.update({"sample_rate": 16_000, "id": "second", "fold": 3})
        file.create_dataset("three", data=np.frombuffer(clip_bytes(tmp_path), dtype=np.uint8))
    path = f"{tmp_path}/c.h5"
    by_id = {record["id"]: record for record in read_records(path)}
    assert by_id["spk/one"] == {
        "id": "spk/one", "audio_path": path, "member": "spk/one", "duration": 0.5, "sample_rate": 8_000, "text": "hi",
        "labels": {"word": "yes"},
    }  # fmt: skip
    about = {"duration": 0.5, "sample_rate": 16_000, "fold": 3}
    assert by_id["second"] == {"id": "second", "audio_path": path, "member": "two"} | about
    assert (by_id["three"]["duration"], by_id["three"]["sample_rate"]) == (0.25, 16_000)


def test_bad_hdf5_datasets_are_left_out(tmp_path):
    with h5py.File(tmp_path / "c.hdf5", "w") as file:
        file.create_dataset("good", data=np.zeros(10, dtype=np.float32)).attrs["sample_rate"] = 16_000
        file.create_dataset("cube", data=np.zeros((2, 2, 2), dtype=np.float32)).attrs["sample_rate"] = 16_000
        file.create_dataset("no_rate", data=np.zeros(10, dtype=np.float32))
        file.create_dataset("no_audio", data=np.zeros(10, dtype=np.uint8))
        file.create_dataset("empty", data=np.zeros(0, dtype=np.float32)).attrs["sample_rate"] = 16_000
    bad = []
    assert [r["id"] for r in read_records(tmp_path / "c.hdf5", on_bad=bad.append)] == ["good"]
    assert {b["source"].rpartition("/")[2]: b["reason"] for b in bad} == {
        "cube": "no audio", "no_rate": "no sample_rate", "no_audio": "unreadable audio", "empty": "bad duration",
    }  # fmt: skip
    (tmp_path / "no.h5").write_text("no")
    with pytest.raises(UserError, match=r"cannot read .*no.h5"):
        read_records(tmp_path / "no.h5")


def test_soundfile_decodes_what_a_range_of_bytes_names(tmp_path):
    path = write_tar(tmp_path / "s.tar", [("a.ogg", clip_bytes(tmp_path, "a.ogg", 0.3))])
    record = read_records(path)[0]
    samples, rate = soundfile.read(io.BytesIO(stored_bytes(str(path), record["byte_offset"], record["num_bytes"])))
    assert (len(samples) / rate, rate) == (record["duration"], record["sample_rate"])

"""Where clips lie and what is wrong with them: segments, containers, fields, bad lines, features, caches."""

from __future__ import annotations

import io
import json
import logging
import tarfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import soundfile
import torch

from components.data import AudioDataset, AudioFiles, read_manifest, write_manifest
from components.data.audio import load_audio
from components.data.cache import ArrayCache
from components.data.faults import Fault
from components.data.readers.headers import header_of
from components.features import FeaturePipeline, LogMel
from tests.components.clips import write_clip, write_corpus
from utils.errors import BadSample, UserError

RATE = 16_000


def ramp(seconds: float) -> np.ndarray:
    """Every sample another value, so that a piece tells where it is from."""
    return np.linspace(-0.9, 0.9, round(seconds * RATE), dtype=np.float32)


def record(path, **more):
    return {"id": more.pop("id", "a"), "audio_path": str(path), "duration": 0.5, "sample_rate": RATE} | more


def one(tmp_path, line: dict, **options):
    write_manifest(tmp_path / "one.jsonl", [line])
    return AudioDataset(tmp_path / "one.jsonl", RATE, **options)[0]


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_a_segment_is_that_piece_of_the_file(tmp_path, suffix):
    soundfile.write(tmp_path / f"long.{suffix}", ramp(3), RATE, subtype="PCM_16")
    item = one(tmp_path, record(f"long.{suffix}", offset=1.25))
    expected = ramp(3)[round(1.25 * RATE) : round(1.75 * RATE)]
    assert np.allclose(item["waveform"][0], expected, atol=1e-4)


def test_a_segment_is_sought_not_decoded(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "long.wav", ramp(60), RATE)
    read = []
    original = soundfile.SoundFile.read

    def watched(file, frames=-1, **how):
        read.append(frames)
        return original(file, frames, **how)

    monkeypatch.setattr(soundfile.SoundFile, "read", watched)
    load_audio(tmp_path / "long.wav", RATE, offset=50.0, duration=0.5)
    assert read == [RATE // 2]


def test_a_segment_behind_the_end_is_bad(tmp_path):
    soundfile.write(tmp_path / "a.wav", ramp(1), RATE)
    with pytest.raises(BadSample, match=r"a.wav: it holds no samples behind 3.0 s"):
        one(tmp_path, record("a.wav", offset=3.0))
    with pytest.raises(BadSample, match=r"it ends 0.30 s before the 0.5 s of"):
        one(tmp_path, record("a.wav", offset=0.8))


def test_what_is_longer_than_its_manifest_says_is_cut_and_rounding_is_not(tmp_path):
    soundfile.write(tmp_path / "a.wav", ramp(30), RATE)
    assert one(tmp_path, record("a.wav"))["waveform"].shape == (1, RATE // 2)
    soundfile.write(tmp_path / "b.wav", ramp(0.5032), RATE)
    assert one(tmp_path, record("b.wav"))["waveform"].shape == (1, round(0.5032 * RATE))


def test_audio_in_a_tar_is_read_where_it_lies(tmp_path):
    expected = write_clip(tmp_path / "a.flac", seed=3).read_bytes()
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        tar.add(tmp_path / "a.flac", "a.flac")
    with tarfile.open(tmp_path / "shard.tar") as tar:
        start = tar.getmember("a.flac").offset_data
    item = one(tmp_path, record("shard.tar", byte_offset=start, num_bytes=len(expected)))
    assert torch.equal(item["waveform"], load_audio(tmp_path / "a.flac", RATE))


def test_audio_in_hdf5_is_samples_or_a_file(tmp_path):
    encoded = io.BytesIO()
    soundfile.write(encoded, ramp(0.5), RATE, format="FLAC")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.attrs["sample_rate"] = RATE
        file["floats"] = ramp(0.5)
        file["integers"] = (ramp(0.5) * 32767).astype(np.int16)
        file["stereo"] = np.stack([ramp(0.5), ramp(0.5)])
        file["encoded"] = np.frombuffer(encoded.getvalue(), dtype=np.uint8)
    for member in ("floats", "integers", "stereo", "encoded"):
        waveform = one(tmp_path, record("a.h5", member=member))["waveform"]
        assert np.allclose(waveform[0], ramp(0.5), atol=1e-3), member
    with pytest.raises(BadSample, match=r"a.h5:nothing: .* has no 'nothing'"):
        one(tmp_path, record("a.h5", member="nothing"))


def test_channels_that_cancel_each_other_are_not_silence(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.stack([ramp(0.5), -ramp(0.5)], 1), RATE)
    assert one(tmp_path, record("a.wav"))["waveform"].abs().max() > 0.8


def test_fields_come_along_and_their_absence_is_a_bad_line(tmp_path):
    write_clip(tmp_path / "a.wav")
    lines = [record("a.wav", id=name, text=text) for name, text in zip("abc", ("yes", "  ", "no"))]
    write_manifest(tmp_path / "m.jsonl", [*lines, record("a.wav", id="d")])
    dataset = AudioDataset(tmp_path / "m.jsonl", RATE, fields=["text"])
    assert [dataset[i]["text"] for i in range(len(dataset))] == ["yes", "no"]
    assert [(bad["id"], bad["reason"]) for bad in dataset.bad_samples] == [("b", "no text"), ("d", "no text")]


def test_lines_that_can_not_be_used_are_named_and_left_out(tmp_path):
    write_clip(tmp_path / "a.wav")
    good = json.dumps(record("a.wav"))
    negative = json.dumps(record("a.wav", duration=-1, id="b"))
    remote = json.dumps(record("https://x.org/a.wav", id="c"))
    damaged = [b'{"id": "half", "audio_pa', b"[1, 2]", b'{"id": "\xff"}']
    broken = [*damaged, negative.encode(), remote.encode(), good.encode()]
    (tmp_path / "m.jsonl").write_bytes(b"\n".join([good.encode(), *broken]))
    dataset = AudioDataset(tmp_path / "m.jsonl", RATE)
    assert len(dataset) == 1
    assert len(dataset.bad_samples) == 6
    assert {bad["reason"] for bad in dataset.bad_samples} == {
        "not valid JSON", "no JSON object", "not UTF-8", "bad duration", "a URL", "duplicate id",
    }  # fmt: skip
    assert dataset.bad_samples[0]["source"].endswith("m.jsonl:2")


def test_a_bad_clip_says_which(tmp_path):
    with pytest.raises(BadSample) as caught:
        one(tmp_path, record("away.wav"))
    assert (caught.value.sample_id, caught.value.reason) == ("a", "no such file")


def test_what_resampling_loses_is_said_once(tmp_path, caplog):
    write_clip(tmp_path / "a.wav", sample_rate=44_100, channels=2)
    write_manifest(tmp_path / "m.jsonl", [record("a.wav", sample_rate=44_100)])
    with caplog.at_level(logging.INFO):
        AudioDataset(tmp_path / "m.jsonl", 16_000)[0]
    assert [message.split(": ", 1)[1] for message in caplog.messages] == [
        "1 of 1 clips are resampled from 44100 Hz to 16000 Hz: what lies above 8000 Hz is lost",
        "clips of 2 channels are mixed down to one (channel=0 takes the first)",
    ]


def test_features_are_those_of_the_device(tmp_path):
    dataset = AudioDataset(write_corpus(tmp_path), RATE, features=LogMel(RATE))
    waveform = AudioDataset(tmp_path / "clips.jsonl", RATE)[1]["waveform"]
    expected, lens = LogMel(RATE)(waveform.unsqueeze(0), torch.tensor([waveform.shape[-1]]))
    item = dataset[1]
    assert torch.equal(item["features"], expected[0, : lens[0]])
    assert "waveform" not in item


def test_features_behind_augmentation_change_at_every_visit(tmp_path):
    from components.augment import RandomGain

    dataset = AudioDataset(write_corpus(tmp_path), RATE, augment={"gain": RandomGain()}, features=LogMel(RATE))
    assert not torch.equal(dataset[0]["features"], dataset[0]["features"])


def test_a_cache_on_disk_spares_the_decoding_and_knows_its_settings(tmp_path):
    manifest = write_corpus(tmp_path)
    cache = ArrayCache(tmp_path / "cache", max_bytes=10**7)
    first = AudioDataset(manifest, RATE, cache=cache)[0]["waveform"]
    stored = cache.totals()["stored"]
    again = AudioDataset(manifest, RATE, cache=cache)[0]["waveform"]
    assert torch.equal(first, again)
    assert cache.totals()["stored"] == stored == 1
    assert AudioDataset(manifest, RATE // 2, cache=cache)[0]["waveform"].shape[-1] == first.shape[-1] // 2
    mels = [AudioDataset(manifest, RATE, features=LogMel(RATE, n_mels=n), cache=cache)[0]["features"] for n in (40, 64)]
    assert [m.shape[1] for m in mels] == [40, 64]
    assert cache.totals()["stored"] == 4
    write_clip(tmp_path / "clip0.wav", 0.5, seed=9)  # another content at the same place
    assert not torch.equal(AudioDataset(manifest, RATE, cache=cache)[0]["waveform"], first)


def test_a_collection_without_a_usable_clip_says_why(tmp_path):
    write_clip(tmp_path / "a.wav")
    write_manifest(tmp_path / "m.jsonl", [record("a.wav", id=name) for name in "ab"])
    with pytest.raises(UserError, match=r"no clip of .*m.jsonl is left: \{'no text': 2\}"):
        AudioDataset(tmp_path / "m.jsonl", RATE, fields=["text"])


def test_plain_files_that_can_not_be_read_are_named(tmp_path):
    write_clip(tmp_path / "a.wav")
    (tmp_path / "b.wav").write_text("<html>")
    dataset = AudioFiles(str(tmp_path), RATE)
    assert [dataset[i]["id"] for i in range(len(dataset))] == [str(tmp_path / "a.wav")]
    assert [bad["reason"] for bad in dataset.bad_samples] == ["a web page"]


def test_manifests_of_other_kinds_are_read_by_name(tmp_path):
    manifest = write_corpus(tmp_path)
    records = read_manifest(manifest)
    rows = ["path\tlabel", *(f"{r['audio_path']}\t{i}" for i, r in enumerate(records))]
    (tmp_path / "t.tsv").write_text("\n".join(rows) + "\n")
    dataset = AudioDataset(tmp_path / "t.tsv", RATE)
    assert len(dataset) == 3
    assert np.allclose(dataset.durations, [0.5, 0.3, 0.4])
    assert len(AudioDataset(Path(tmp_path), RATE, format="folder")) == 3


def test_what_a_tar_holds_is_named_by_its_own_first_bytes(tmp_path):
    (tmp_path / "c.tar").write_bytes(b"<html>" + b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(BadSample, match="it is a Git LFS pointer") as caught:
        load_audio(tmp_path / "c.tar", RATE, byte_offset=6, num_bytes=42)
    assert caught.value.reason == "Git LFS pointer"


@pytest.mark.parametrize("head", [b"", b"<html>", b"\0\0\0 ftypM4A ", b"{}", bytes(64), b"noise"])
def test_reading_a_header_and_reading_the_audio_give_one_reason(tmp_path, head):
    (tmp_path / "a.wav").write_bytes(head)
    with pytest.raises(Fault) as by_header:
        header_of(record(tmp_path / "a.wav"))
    with pytest.raises(BadSample) as by_audio:
        load_audio(tmp_path / "a.wav", RATE)
    assert by_header.value.reason == by_audio.value.reason
    assert by_header.value.detail == str(by_audio.value)


def test_the_header_of_a_file_that_was_mended_is_read_again(tmp_path):
    path = tmp_path / "a.wav"
    with pytest.raises(Fault, match="no such file"):
        header_of(record(path))
    for num_samples in (800, 1600):
        soundfile.write(path, np.zeros(num_samples), RATE)
        assert header_of(record(path)).num_samples == num_samples


@pytest.mark.parametrize(
    ("rate", "settings", "sentence"),
    [
        (-5, {}, "sample_rate: implausible, -5 Hz"),
        (RATE, {"features": LogMel(8_000)}, "features: made for 8000 Hz, but sample_rate is 16000 Hz"),
        (RATE, {"features": FeaturePipeline(LogMel(8_000))}, "features: made for 8000 Hz"),
    ],
)
def test_parts_that_do_not_fit_are_refused_at_once(tmp_path, rate, settings, sentence):
    with pytest.raises(UserError, match=sentence):
        AudioDataset(write_corpus(tmp_path), rate, **settings)

import gzip
import io
import json

import numpy as np
import pytest
import soundfile

from components.data.readers import read_records
from components.data.readers.headers import header_of
from components.data.stored import stored_bytes
from tests.components.clips import write_clip
from utils.errors import UserError

lhotse = pytest.importorskip("lhotse")


def recording(folder, name="rec", seconds=2.0, channels=1):
    return lhotse.Recording.from_file(write_clip(folder / f"{name}.wav", seconds, channels=channels))


def supervision(identifier, start=0.0, duration=1.0, **fields):
    return lhotse.SupervisionSegment(identifier, "rec", start=start, duration=duration, **fields)


def save(folder, *cuts, name="cuts.jsonl.gz"):
    lhotse.CutSet.from_cuts(cuts).to_file(folder / name)
    return folder / name


def test_a_cut_is_a_segment_with_its_supervision_and_custom_fields(tmp_path):
    sound = recording(tmp_path)
    spoken = supervision("s", text="hi", speaker="bob", language="en", gender="f", custom={"noisy": True})
    whole = lhotse.MonoCut("whole", 0, 2.0, 0, recording=sound)
    part = lhotse.MonoCut("part", 0.5, 1.0, 0, [spoken], recording=sound, custom={"labels": {"word": "yes"}})
    first = lhotse.MonoCut("first", 0, 1.0, 0, recording=sound)
    audio = {"audio_path": str(tmp_path / "rec.wav"), "sample_rate": 16000}
    about = {"text": "hi", "speaker": "bob", "language": "en", "gender": "f", "noisy": True, "labels": {"word": "yes"}}
    assert list(read_records(save(tmp_path, whole, part, first))) == [
        {"id": "whole", "duration": 2.0} | audio,
        {"id": "part", "duration": 1.0, "offset": 0.5} | audio | about,
        {"id": "first", "duration": 1.0, "offset": 0.0} | audio,
    ]


def test_several_supervisions_are_joined_or_split(tmp_path):
    spans = [supervision("a", 0.2, 0.3, text="one", speaker="x"), supervision("b", 0.8, 5.0, text="two", speaker="y")]
    path = save(tmp_path, lhotse.MonoCut("c", 0.5, 1.0, 0, spans, recording=recording(tmp_path)))
    joined = read_records(path)[0]
    assert joined["text"] == "one two"
    assert "speaker" not in joined
    split = read_records(path, supervisions="split")
    assert [(r["id"], r["text"], r["speaker"], r["offset"], r["duration"]) for r in split] == [
        ("a", "one", "x", 0.7, 0.3),
        ("b", "two", "y", 1.3, 0.2),
    ]
    with pytest.raises(UserError, match="supervisions must be join or split, not 'all'"):
        read_records(path, supervisions="all")


def test_channels_of_a_file(tmp_path):
    sound = recording(tmp_path, channels=2)
    one = lhotse.MonoCut("one", 0, 2.0, 1, recording=sound)
    both = lhotse.MultiCut("both", 0, 2.0, [0, 1], recording=sound)
    assert [r.get("channel") for r in read_records(save(tmp_path, one, both, name="c.jsonl"))] == [1, None]


def test_cuts_that_are_no_stretch_of_a_file_are_left_out(tmp_path):
    sound = recording(tmp_path)
    cut = lhotse.MonoCut("cut", 0, 2.0, 0, recording=sound)
    command = lhotse.Recording("r", [lhotse.AudioSource("command", [0], "sox a.wav -t wav -")], 16000, 32000, 2.0)
    url = lhotse.Recording("r", [lhotse.AudioSource("url", [0], "http://host/a.wav")], 16000, 32000, 2.0)
    cuts = [
        cut,
        cut.perturb_speed(0.9),
        cut.pad(duration=3.0).with_id("padded"),
        lhotse.MonoCut("command", 0, 2.0, 0, recording=command),
        lhotse.MonoCut("url", 0, 2.0, 0, recording=url),
        lhotse.MonoCut("silent", 0, 2.0, 0),
    ]
    bad = []
    path = save(tmp_path, *cuts)
    with gzip.open(path, "at") as file:
        file.write('{"type": "MonoCut", "id": "torn"}\n')
    assert [r["id"] for r in read_records(path, on_bad=bad.append)] == ["cut"]
    assert [b["reason"] for b in bad] == [
        "a changed recording", "a MixedCut", "a command", "a URL", "no recording", "no recording",
    ]  # fmt: skip
    assert "(Speed)" in bad[0]["detail"]
    assert bad[3]["source"] == f"{path}:5"


@pytest.mark.parametrize("audio", ["flac", "wav"])
def test_shar_folders_are_ranges_of_their_tars(tmp_path, audio):
    sounds = [recording(tmp_path, f"rec{i}", 1.0 + i) for i in range(3)]
    cuts = [
        lhotse.MonoCut(f"sp/c{i}", 0.5, 0.5, 0, [supervision(f"s{i}", duration=0.5, text=f"t{i}")], recording=sound)
        for i, sound in enumerate(sounds)
    ]
    (tmp_path / "shar").mkdir()
    list(lhotse.CutSet.from_cuts(cuts).to_shar(tmp_path / "shar", fields={"recording": audio}, shard_size=2))
    records = read_records(tmp_path / "shar")
    assert [(r["id"], r["text"], r["duration"], r["sample_rate"]) for r in records] == [
        (f"sp/c{i}", f"t{i}", 0.5, 16000) for i in range(3)
    ]
    assert [r["audio_path"].rpartition("/")[2] for r in records] == ["recording.000000.tar"] * 2 + [
        "recording.000001.tar"
    ]
    for record, cut in zip(records, cuts):
        assert header_of(record).num_samples == 8_000
        stored = stored_bytes(record["audio_path"], record["byte_offset"], record["num_bytes"])
        np.testing.assert_allclose(soundfile.read(io.BytesIO(stored))[0], cut.load_audio()[0], atol=1e-4)


def test_a_shard_whose_halves_disagree_is_named(tmp_path):
    cuts = [lhotse.MonoCut(f"c{i}", 0, 1.0, 0, recording=recording(tmp_path, f"r{i}", 1.0)) for i in range(2)]
    (tmp_path / "shar").mkdir()
    lhotse.CutSet.from_cuts(cuts).to_shar(tmp_path / "shar", fields={"recording": "flac"}, shard_size=None)
    path = next((tmp_path / "shar").glob("cuts*"))
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    with gzip.open(path, "wt") as file:
        file.write(lines[1] + "\n")
    bad = []
    with pytest.raises(UserError, match="no clip that can be used"):
        read_records(tmp_path / "shar", on_bad=bad.append)
    assert [b["reason"] for b in bad] == ["half a shard"] * 2
    assert json.loads(lines[1])["id"] in bad[0]["detail"]

import filecmp
import io
import json
import tarfile

import numpy as np
import pytest
import soundfile

from components.data.__main__ import main as run
from components.data.convert import convert
from components.data.manifest import write_manifest
from components.data.readers import iterate_records, read_records
from components.data.splits import Split
from components.data.stored import stored_bytes
from tests.components.clips import write_clip
from utils.errors import UserError

EXTRAS = {
    "text": "he said \"hi\",\nthen 'привет' [noise]",
    "speaker": "bob",
    "language": "en",
    "caption": "a man",
    "labels": {"word": "yes", "mood": "calm"},
    "tags": ["dog", "rain"],
    "slots": {"size": ["big", {"deep": None}]},
    "fold": 3,
    "gain": -1.5,
    "clean": True,
}


def corpus(folder, num_clips=4):
    """A whole file, a segment, a channel, and one beside, with every kind of field."""
    records = []
    for i in range(num_clips):
        path = write_clip(folder / "audio" / f"{i}.{'wav' if i % 2 else 'flac'}", 0.5, 8_000, 1 + (i == 2), seed=i)
        audio = {
            "id": f"set/clip.{i}",
            "audio_path": str(path.relative_to(folder)),
            "duration": 0.5,
            "sample_rate": 8_000,
        }
        records.append(audio | EXTRAS | {"speaker": f"speaker{i % 2}"})
    if num_clips > 2:
        records[1] |= {"offset": 0.125, "duration": 0.25}
        records[2] |= {"channel": 1}
    write_manifest(folder / "corpus.jsonl", records)
    return folder / "corpus.jsonl"


def samples_of(record):
    if "member" in record:
        import h5py

        with h5py.File(record["audio_path"]) as file:
            source = io.BytesIO(file[record["member"]][()].tobytes())
    elif "byte_offset" in record:
        source = io.BytesIO(stored_bytes(record["audio_path"], record["byte_offset"], record["num_bytes"]))
    else:
        source = record["audio_path"]
    samples, rate = soundfile.read(source, always_2d=True)
    start = round(record.get("offset", 0) * rate)
    samples = samples[start : start + round(record["duration"] * rate)]
    return samples[:, [record["channel"]]] if "channel" in record else samples


@pytest.mark.parametrize("name", ["cuts.jsonl", "cuts.jsonl.gz"])
def test_lhotse_and_back_keeps_everything(tmp_path, name):
    lhotse = pytest.importorskip("lhotse")
    source = corpus(tmp_path)
    convert(source, tmp_path / name, to="lhotse")
    cuts = lhotse.CutSet.from_file(tmp_path / name)
    for cut, record in zip(cuts, read_records(source)):
        lhotse.validate(cut)
        np.testing.assert_allclose(cut.load_audio().T, samples_of(record), atol=1e-6)
    convert(tmp_path / name, tmp_path / "back.jsonl")
    assert list(read_records(tmp_path / "back.jsonl")) == list(read_records(source))


@pytest.mark.parametrize("name", ["c.tar", "c.h5"])
def test_containers_hold_the_same_audio_and_fields(tmp_path, name):
    source = corpus(tmp_path / "from")
    convert(source, tmp_path / name)
    packed, plain = list(read_records(tmp_path / name)), list(read_records(source))
    place = {"audio_path", "offset", "channel", "byte_offset", "num_bytes", "member"}
    for one, other in zip(sorted(packed, key=lambda record: record["id"]), plain):
        assert {k: v for k, v in one.items() if k not in place} == {k: v for k, v in other.items() if k not in place}
        np.testing.assert_array_equal(samples_of(one), samples_of(other))
    assert len(packed) == len(plain) == 4
    # From one container to the other: whole files are the same, byte by byte.
    convert(tmp_path / name, tmp_path / "again.tar")
    whole = next(record for record in read_records(tmp_path / "again.tar") if record["id"] == "set/clip.0")
    stored = stored_bytes(whole["audio_path"], whole["byte_offset"], whole["num_bytes"])
    assert stored == (tmp_path / "from" / "audio" / "0.flac").read_bytes()


def test_tars_have_the_layout_of_webdataset(tmp_path):
    convert(corpus(tmp_path), tmp_path / "c.tar")
    with tarfile.open(tmp_path / "c.tar") as tar:
        names = tar.getnames()
        assert names[:4] == ["000000000.flac", "000000000.json", "000000001.flac", "000000001.json"]
        fields = json.load(tar.extractfile("000000001.json"))
    assert fields["id"] == "set/clip.1"
    assert "audio_path" not in fields
    assert "offset" not in fields


def test_shards_hold_so_many_clips_each(tmp_path):
    source = corpus(tmp_path / "from", 5)
    assert run(["convert", str(source), str(tmp_path / "to" / "c.tar"), "--shard-size", "2"]) == 0
    assert sorted(path.name for path in (tmp_path / "to").iterdir()) == [f"c-00000{i}.tar" for i in range(3)]
    assert [r["id"] for r in read_records(f"{tmp_path}/to/c-*.tar")] == [f"set/clip.{i}" for i in range(5)]
    with pytest.raises(UserError, match="--shard-size is of tar shards, not of jsonl"):
        convert(source, tmp_path / "c.jsonl", shard_size=2)


def test_the_same_records_make_the_same_files(tmp_path):
    for name in ("a.jsonl.gz", "a.tar", "a.csv"):
        for folder in ("one", "two"):
            convert(corpus(tmp_path / "from"), tmp_path / folder / name)
        assert filecmp.cmp(tmp_path / "one" / name, tmp_path / "two" / name, shallow=False)


@pytest.mark.parametrize("name", ["c.csv", "c.tsv"])
def test_tables_keep_all_but_the_types_of_foreign_numbers(tmp_path, name):
    source = corpus(tmp_path)
    convert(source, tmp_path / name)
    numbers = {"fold": "3", "gain": "-1.5", "clean": "true"}
    assert list(read_records(tmp_path / name)) == [record | numbers for record in iterate_records(source)]


def test_kaldi_folders_keep_what_kaldi_knows(tmp_path, caplog):
    records = [record | {"id": f"u{i}"} for i, record in enumerate(read_records(corpus(tmp_path)))]
    del records[3]["speaker"]
    write_manifest(tmp_path / "flat.jsonl", reversed(records))
    convert(tmp_path / "flat.jsonl", tmp_path / "data", to="kaldi")
    lost = {"caption", "labels", "tags", "slots", "fold", "gain", "clean"}
    expected = [
        {k: v for k, v in record.items() if k not in lost} | {"text": " ".join(EXTRAS["text"].split())}
        for record in records
    ]
    for record in expected:
        record.setdefault("offset", 0.0)
    assert list(read_records(tmp_path / "data")) == expected
    assert "Kaldi has no place for" in caplog.text
    assert "labels of 4" in caplog.text
    with pytest.raises(UserError, match="data is there already"):
        convert(tmp_path / "flat.jsonl", tmp_path / "data", to="kaldi")
    write_manifest(tmp_path / "spaces.jsonl", [records[0] | {"id": "set/clip 0"}])
    with pytest.raises(UserError, match=r"spaces.jsonl: set/clip 0: the id .* has spaces"):
        convert(tmp_path / "spaces.jsonl", tmp_path / "other", to="kaldi")
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["audio", "data"]


def test_float_audio_beyond_one_is_not_clipped(tmp_path):
    samples = np.array([0.5, -3.0, 0.25, 0.1], dtype=np.float32)
    soundfile.write(tmp_path / "loud.wav", samples, 8_000, subtype="FLOAT")
    record = {"id": "a", "audio_path": "loud.wav", "offset": 0.000125, "duration": 0.00025, "sample_rate": 8_000}
    write_manifest(tmp_path / "m.jsonl", [record])
    convert(tmp_path / "m.jsonl", tmp_path / "c.tar")
    packed = read_records(tmp_path / "c.tar")[0]
    np.testing.assert_array_equal(samples_of(packed)[:, 0], samples[1:3])


def test_samples_in_hdf5_are_written_out(tmp_path):
    import h5py

    samples = np.arange(-4, 4, dtype=np.int16) * 1000
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file.create_dataset("a", data=np.stack([samples, samples[::-1]])).attrs["sample_rate"] = 8_000
        file.create_dataset("b", data=samples / np.float32(32768)).attrs["sample_rate"] = 8_000
    convert(tmp_path / "c.h5", tmp_path / "c.tar")
    both, single = read_records(tmp_path / "c.tar")
    np.testing.assert_array_equal(samples_of(both) * 32768, np.stack([samples, samples[::-1]], axis=1))
    np.testing.assert_array_equal(samples_of(single)[:, 0] * 32768, samples)


def test_long_texts_fit_into_hdf5(tmp_path):
    source = corpus(tmp_path, 1)
    record = next(iterate_records(source)) | {"text": "слово " * 40_000, "note": "nul \0 here"}
    write_manifest(tmp_path / "m.jsonl", [record])
    convert(tmp_path / "m.jsonl", tmp_path / "c.h5")
    back = read_records(tmp_path / "c.h5")[0]
    assert (back["text"], back["note"]) == (record["text"], record["note"])


def test_audio_below_the_manifest_is_named_from_there(tmp_path):
    source = corpus(tmp_path)
    convert(source, tmp_path / "beside.jsonl")
    convert(source, tmp_path / "lists" / "apart.jsonl")
    first = [
        json.loads((tmp_path / name).read_text().splitlines()[0]) for name in ("beside.jsonl", "lists/apart.jsonl")
    ]
    assert [record["audio_path"] for record in first] == ["audio/0.flac", f"{tmp_path}/audio/0.flac"]


def many(folder, num_speakers=50, per_speaker=20):
    audio = {"audio_path": "/x/a.wav", "duration": 1.0, "sample_rate": 16_000}
    ids = [(f"{s}-{i}", f"s{s}") for s in range(num_speakers) for i in range(per_speaker)]
    write_manifest(folder / "m.jsonl", ({"id": name, "speaker": speaker} | audio for name, speaker in ids))
    return folder / "m.jsonl"


def split_of(folder):
    return {r["id"]: name for name in ("train", "val", "test") for r in read_records(folder / f"{name}.jsonl")}


def test_a_split_by_id_has_its_shares_and_does_not_move(tmp_path):
    outcome = convert(many(tmp_path), tmp_path / "a", split=Split(val=0.1, test=0.2))
    assert outcome.records["val"] == pytest.approx(100, abs=30)
    assert outcome.records["test"] == pytest.approx(200, abs=40)
    assert outcome.records.total() == len(split_of(tmp_path / "a")) == 1000
    # Fewer clips, in another order: each is where it was.
    write_manifest(tmp_path / "fewer.jsonl", reversed(list(read_records(tmp_path / "m.jsonl"))[::3]))
    convert(tmp_path / "fewer.jsonl", tmp_path / "b", split=Split(val=0.1, test=0.2))
    assert split_of(tmp_path / "b").items() <= split_of(tmp_path / "a").items()
    convert(tmp_path / "m.jsonl", tmp_path / "c", split=Split(val=0.1, test=0.2, seed=1))
    assert split_of(tmp_path / "c") != split_of(tmp_path / "a")


def test_a_split_by_speaker_keeps_every_speaker_whole(tmp_path, capsys):
    arguments = ["--val", "0.2", "--test", "0.2", "--split-by", "speaker", "--seed", "3"]
    assert run(["convert", str(many(tmp_path)), str(tmp_path / "out"), *arguments]) == 0
    homes = {}
    for identifier, name in split_of(tmp_path / "out").items():
        homes.setdefault(identifier.split("-")[0], set()).add(name)
    assert all(len(names) == 1 for names in homes.values())
    assert "train" in capsys.readouterr().out
    with pytest.raises(UserError, match="--split-by singer: '0-0' has no 'singer'"):
        convert(tmp_path / "m.jsonl", tmp_path / "other", split=Split(val=0.5, by="singer"))
    with pytest.raises(UserError, match="nothing is left for"):
        convert(many(tmp_path, 1), tmp_path / "other", split=Split(val=0.5, by="speaker"))
    assert not list((tmp_path / "other").iterdir())
    with pytest.raises(UserError, match="that leave something to train on"):
        Split(val=0.6, test=0.4)


def test_a_conversion_that_fails_leaves_nothing(tmp_path):
    source = corpus(tmp_path / "from")
    with source.open("a") as file:
        file.write("not json\n")
    for name in ("c.jsonl", "c.csv", "c.tar", "c.h5", "cuts.jsonl.gz"):
        to = "lhotse" if name.startswith("cuts") else None
        with pytest.raises(UserError, match=r"corpus.jsonl:5: not valid JSON"):
            convert(source, tmp_path / "out" / name, to=to)
    assert list((tmp_path / "out").iterdir()) == []


def test_the_command_names_what_it_leaves_out(tmp_path, capsys):
    source = corpus(tmp_path)
    with source.open("a") as file:
        file.write('not json\n{"id": "gone", "audio_path": "gone.wav", "duration": 1, "sample_rate": 8000}\n')
    target, bad = str(tmp_path / "c.tar"), tmp_path / "bad.jsonl"
    assert run(["convert", str(source), target]) == 2
    assert "corpus.jsonl:5: not valid JSON" in capsys.readouterr().err
    assert run(["convert", str(source), target, "--bad", str(bad)]) == 0
    assert "left out 2 (1 not valid JSON, 1 no such file)" in capsys.readouterr().out
    assert [json.loads(line)["id"] for line in bad.read_text().splitlines()] == [None, "gone"]
    assert len(read_records(target)) == 4


def test_the_command_says_what_it_does_not_know(tmp_path, capsys):
    source = str(corpus(tmp_path))
    for arguments, complaint in [
        ([str(tmp_path / "c.doc")], "its suffix tells no layout: give --to"),
        ([str(tmp_path / "c.jsonl"), "--option", "word"], "--option word: give NAME=VALUE"),
        ([str(tmp_path / "c.jsonl"), "--option", "target=x"], "the format jsonl has no option 'target'"),
    ]:
        assert run(["convert", source, *arguments]) == 2
        assert complaint in capsys.readouterr().err
    assert run(["convert", str(tmp_path / "audio"), str(tmp_path / "c.jsonl"), "--option", "target=word"]) == 0
    assert len(read_records(tmp_path / "c.jsonl")) == 4

import gzip
import json
import logging
from pathlib import Path

import pytest
import soundfile

from components.data.readers import iterate_records, read_records
from tests.components.clips import write_clip
from utils.errors import UserError

HOSTILE = Path(__file__).resolve().parents[4] / "shared" / "data" / "hostile_audio" / "manifests"
RECORD = {"id": "a", "audio_path": "a.wav", "duration": 1.5, "sample_rate": 16000}


def write(path, *lines):
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_our_lines_keep_every_key_and_get_an_absolute_path(tmp_path):
    record = RECORD | {"source": "somewhere", "target": "clean.wav", "path": "x", "labels": {"word": "yes"}, "fold": 1}
    elsewhere = RECORD | {"id": "b", "audio_path": "/elsewhere/b.wav"}
    path = write(tmp_path / "m.jsonl", record, elsewhere)
    assert list(read_records(path)) == [record | {"audio_path": f"{tmp_path}/a.wav"}, elsewhere]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ({"audio_filepath": "d/x.wav", "text": "hi", "duration": 2.5}, {"id": "d/x", "text": "hi", "duration": 2.5}),
        (
            {"key": "k", "source": "x.wav", "source_len": 123, "target": "hi", "target_len": 2},
            {"id": "k", "duration": 1.23, "text": "hi", "target_len": 2},
        ),
        ({"utt_id": "u", "wav": "x.wav", "transcript": "hi", "duration": 1}, {"id": "u", "text": "hi", "duration": 1}),
        ({"path": "x.wav", "sentence": "hi", "caption": "a dog"}, {"id": "x", "text": "hi", "caption": "a dog"}),
        ({"audio": "x.wav", "caption": "a dog"}, {"id": "x", "text": "a dog", "caption": "a dog"}),
        ({"audio_filepath": "x.wav", "offset": 1.25, "duration": 1}, {"id": "x@1.250", "offset": 1.25, "duration": 1}),
    ],
)  # fmt: skip
def test_other_peoples_keys_become_ours(tmp_path, line, expected):
    audio = next(line[key] for key in ("audio_filepath", "source", "wav", "path", "audio") if key in line)
    record = read_records(write(tmp_path / "nemo.json", line), fill=False)[0]
    assert record == expected | {"audio_path": f"{tmp_path}/{audio}"}


@pytest.mark.parametrize(
    ("line", "reason", "detail"),
    [
        ('{"id": "a",}', "not valid JSON", "not valid JSON (Expecting property name"),
        ("[1]", "no JSON object", "expected a JSON object, found list"),
        ("1" * 5000, "not valid JSON", "not valid JSON (Exceeds the limit"),
        ({"audio_path": "a.wav"}, "no id", "the key 'id' is missing"),
        ({"id": "a"}, "no audio_path", "the key 'audio_path' is missing"),
        ({"id": "a", "audiopath": "a.wav"}, "no audio_path", "(did you mean 'audio_path' by 'audiopath'?)"),
        (RECORD | {"id": 7}, "bad id", "'id' has an unusable value, 7"),
        (RECORD | {"id": " "}, "bad id", "'id' has an unusable value"),
        (RECORD | {"audio_path": "https://host/a.wav"}, "a URL", "fetch the file first"),
        (RECORD | {"duration": -1}, "bad duration", "'duration' must be a positive number, not -1"),
        (RECORD | {"duration": 0}, "bad duration", "must be a positive number"),
        (RECORD | {"duration": "1.9"}, "bad duration", "'duration' has an unusable value, '1.9'"),
        (RECORD | {"duration": True}, "bad duration", "'duration' has an unusable value, True"),
        (RECORD | {"duration": 1e6}, "bad duration", "1000000.0 s are more than 24 hours"),
        (RECORD | {"duration": float("inf")}, "bad duration", "must be a positive number, not inf"),
        (RECORD | {"gain": float("nan")}, "not a finite number", "NaN is not JSON"),
        (RECORD | {"sample_rate": 1}, "bad sample_rate", "implausible: 1 Hz"),
        (RECORD | {"sample_rate": 16000.5}, "bad sample_rate", "'sample_rate' has an unusable value"),
        (RECORD | {"offset": -0.5}, "bad offset", "must be 0 or a positive number"),
        (RECORD | {"channel": -1}, "bad channel", "a whole number from 0 on"),
        (RECORD | {"text": 1234}, "bad text", "'text' has an unusable value, 1234"),
        (RECORD | {"text": "half \ud83d"}, "not UTF-8", "'text' is not UTF-8"),
        (RECORD | {"labels": "yes"}, "bad labels", "'labels' must map targets to class names"),
        (RECORD | {"labels": {"word": {"a": 1}}}, "bad labels", "must map 'word' to a class name"),
        (RECORD | {"tags": "dog,rain"}, "bad tags", "'tags' has an unusable value, 'dog,rain' (a list of texts)"),
        (RECORD | {"byte_offset": 512}, "half a byte range", "'byte_offset' and 'num_bytes' come together"),
        ({"source": "a.wav", "source_len": "long"}, "bad source_len", "frames of 10 ms"),
    ],
)
def test_a_bad_line_is_named_or_left_out(tmp_path, line, reason, detail):
    good = RECORD | {"id": "good"}
    path = write(tmp_path / "m.jsonl", good, "", line)
    with pytest.raises(UserError) as error:
        read_records(path, fill=False)
    assert str(error.value).startswith(f"{path}:3: ")
    assert detail in str(error.value)
    bad = []
    assert [record["id"] for record in read_records(path, on_bad=bad.append, fill=False)] == ["good"]
    assert bad[0].keys() == {"id", "source", "reason", "detail"}
    assert (bad[0]["source"], bad[0]["reason"]) == (f"{path}:3", reason)
    assert detail in bad[0]["detail"]


def test_a_line_that_is_left_out_is_called_by_its_id(tmp_path):
    bad = []
    read_records(write(tmp_path / "m.jsonl", RECORD, RECORD | {"id": "b", "text": 1}), on_bad=bad.append)
    assert [b["id"] for b in bad] == ["b"]


def test_a_null_is_a_missing_key_and_a_whole_float_a_rate(tmp_path):
    line = RECORD | {"text": None, "offset": None, "labels": None, "sample_rate": 16000.0, "note": None}
    record = read_records(write(tmp_path / "m.jsonl", line))[0]
    assert record == RECORD | {"audio_path": f"{tmp_path}/a.wav", "note": None}
    assert isinstance(record["sample_rate"], int)


def test_the_first_of_two_equal_ids_is_kept_and_named(tmp_path):
    path = write(tmp_path / "m.jsonl", RECORD, RECORD | {"id": "b"}, RECORD | {"text": "again"})
    with pytest.raises(UserError, match=r"m.jsonl:3: id 'a' was used already in .*m.jsonl:1"):
        read_records(path)
    bad = []
    assert ["text" in record for record in read_records(path, on_bad=bad.append)] == [False, False]
    assert bad == [{"id": "a", "source": f"{path}:3", "reason": "duplicate id", "detail": "id 'a' was used already"}]


def test_a_bad_first_line_with_an_id_does_not_use_the_id_up(tmp_path):
    path = write(tmp_path / "m.jsonl", RECORD | {"duration": -1}, RECORD)
    assert len(read_records(path, on_bad=lambda bad: None)) == 1


def test_a_line_cut_short_is_told_so(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text(json.dumps(RECORD) + "\n" + json.dumps(RECORD | {"id": "b"})[:40])
    with pytest.raises(UserError, match=r"m.jsonl:2: not valid JSON .*was the file cut short"):
        read_records(path)


def test_a_key_that_is_nearly_ours_is_told_once(tmp_path, caplog):
    lines = [RECORD | {"id": str(i), "durration": 1.0, "label": "x"} for i in range(3)]
    assert read_records(write(tmp_path / "m.jsonl", *lines))[0]["durration"] == 1.0
    assert [record.message for record in caplog.records] == [
        f"{tmp_path}/m.jsonl:1: did you mean 'duration' by 'durration'? It is kept as it is"
    ]


def test_bom_crlf_and_gzip_are_read(tmp_path):
    content = b"\xef\xbb\xbf" + json.dumps(RECORD).encode() + b"\r\n\r\n" + json.dumps(RECORD | {"id": "b"}).encode()
    (tmp_path / "m.jsonl").write_bytes(content)
    with gzip.open(tmp_path / "m.json.gz", "wb") as file:
        file.write(content)
    assert [r["id"] for r in read_records(tmp_path / "m.jsonl")] == ["a", "b"]
    assert list(read_records(tmp_path / "m.json.gz")) == list(read_records(tmp_path / "m.jsonl"))
    (tmp_path / "cut.jsonl.gz").write_bytes((tmp_path / "m.json.gz").read_bytes()[:-20])
    with pytest.raises(UserError, match=r"cut.jsonl.gz: the compressed file is cut short"):
        read_records(tmp_path / "cut.jsonl.gz")


def test_sources_that_cannot_be_read_are_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"nowhere.jsonl does not exist"):
        read_records(tmp_path / "nowhere.jsonl")
    with pytest.raises(UserError, match=r"shard-\*.tar matches nothing"):
        read_records(str(tmp_path / "shard-*.tar"))
    (tmp_path / "notes.doc").write_text("no")
    with pytest.raises(UserError, match=r"notes.doc is of no layout that is known \(lhotse: Lhotse cuts"):
        read_records(tmp_path / "notes.doc")
    with pytest.raises(UserError, match=r"there is no format 'kladi' \(did you mean 'kaldi'"):
        iterate_records(tmp_path, format="kladi")
    with pytest.raises(UserError, match=r"jsonl has no option 'target': it has none"):
        read_records(write(tmp_path / "m.jsonl", RECORD), target="word")
    with pytest.raises(UserError, match=r"empty.jsonl holds no clip$"):
        read_records(write(tmp_path / "empty.jsonl"))
    (tmp_path / "utf16.jsonl").write_text(json.dumps(RECORD), encoding="utf-16")
    with pytest.raises(UserError, match="UTF-16, not UTF-8"):
        read_records(tmp_path / "utf16.jsonl", on_bad=lambda bad: None)
    with pytest.raises(UserError, match="one JSON object a line is read"):
        read_records(write(tmp_path / "array.json", [RECORD]))


def test_a_list_and_a_glob_are_read_in_order(tmp_path):
    for name in ("b", "a"):
        write(tmp_path / f"{name}.jsonl", RECORD | {"id": name})
    assert [r["id"] for r in read_records(str(tmp_path / "*.jsonl"))] == ["a", "b"]
    assert [r["id"] for r in read_records([tmp_path / "b.jsonl", tmp_path / "a.jsonl"])] == ["b", "a"]
    with pytest.raises(UserError, match=r"a.jsonl:1: id 'a' was used already in .*a.jsonl:1"):
        read_records([tmp_path / "a.jsonl", tmp_path / "a.jsonl"])


def test_what_is_missing_comes_from_the_headers_once(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    write_clip(tmp_path / "a.wav", 0.5, 8_000)
    segments = [{"id": f"{i}", "audio_path": "a.wav", "offset": i / 10} for i in range(3)]
    path = write(tmp_path / "m.jsonl", *segments, RECORD)
    opened, info = [], soundfile.info
    monkeypatch.setattr(soundfile, "info", lambda file: opened.append(file) or info(file))
    records = read_records(path)
    assert [(r["duration"], r["sample_rate"]) for r in records] == [(0.5, 8000), (0.4, 8000), (0.3, 8000), (1.5, 16000)]
    assert opened == [f"{tmp_path}/a.wav"]
    assert "3 of 4 durations or sample rates came from the headers" in caplog.text
    assert "duration" not in read_records(path, fill=False)[0]


def test_audio_that_has_no_header_is_left_out(tmp_path):
    (tmp_path / "empty.wav").touch()
    (tmp_path / "pointer.wav").write_text("version https://git-lfs.github.com/spec/v1\n")
    (tmp_path / "page.wav").write_text("<html>")
    (tmp_path / "aac.wav").write_bytes(b"\0\0\0 ftypM4A ")
    soundfile.write(tmp_path / "slow.wav", [0.0, 0.1], 1)
    (tmp_path / "folder.wav").mkdir()
    soundfile.write(tmp_path / "nothing.wav", [], 16_000)
    write_clip(tmp_path / "late.wav", 0.1)
    names = ["gone", "empty", "pointer", "page", "aac", "slow", "folder", "nothing", "late"]
    path = write(tmp_path / "m.jsonl", RECORD, *({"id": n, "audio_path": f"{n}.wav", "offset": 3} for n in names))
    bad = []
    assert len(read_records(path, on_bad=bad.append)) == 1
    assert [b["id"] for b in bad] == names
    reasons = ["no such file", "empty file", "Git LFS pointer", "a web page", "AAC", "implausible rate"]
    assert [b["reason"] for b in bad] == [*reasons, "no such file", "no samples", "offset past the end"]


@pytest.mark.skipif(not HOSTILE.is_dir(), reason="needs the shared hostile manifests")
def test_every_bad_line_of_the_hostile_manifests_has_one_reason():
    def read(name):
        bad = []
        try:
            good = [record["id"] for record in read_records(HOSTILE / name, on_bad=bad.append)]
        except UserError as error:
            good = str(error)
        return good, [(b["id"], b["reason"]) for b in bad]

    good, bad = read("semantic_errors.jsonl")
    assert bad == [
        ("int_text", "bad text"), ("negative_duration", "bad duration"), ("zero_duration", "bad duration"),
        ("string_duration", "bad duration"), ("negative_offset", "bad offset"), ("url_path", "a URL"),
        ("tags_as_string", "bad tags"), ("duplicate_id", "duplicate id"),
    ]  # fmt: skip
    assert len(good) == 18
    assert "ok" in good
    good, bad = read("malformed.jsonl")
    assert good == ["ok1"]
    assert [reason for _, reason in bad] == ["not valid JSON"] * 2 + ["no JSON object"] * 2 + ["not valid JSON"]
    assert read("nan_duration.jsonl")[1] == [(None, "bad duration")] * 2
    assert read("latin1_bytes.jsonl")[1] == [(None, "not UTF-8")]
    assert read("bom_crlf.jsonl") == (["bom", "crlf"], [])
    assert read("empty.jsonl")[0].endswith("holds no clip")
    assert "UTF-16" in read("utf16.jsonl")[0]

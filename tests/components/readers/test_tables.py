from pathlib import Path

import pytest

from components.data.readers import read_records
from tests.components.clips import write_clip
from utils.errors import UserError

HOSTILE = Path(__file__).resolve().parents[4] / "shared" / "data" / "hostile_audio" / "manifests"


def write(path, *lines):
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_columns_become_typed_fields(tmp_path):
    path = write(
        tmp_path / "t.csv",
        "id,audio_path,duration,sample_rate,text,labels.word,tags,fold,speaker",
        'a,x.wav,1.5,16000,"say ""hi"", you",yes,"[""dog"", ""rain""]",1,7',
        "b,/abs/y.wav,2,8000.0,[noise],,,,",
    )
    assert list(read_records(path)) == [
        {"id": "a", "audio_path": f"{tmp_path}/x.wav", "duration": 1.5, "sample_rate": 16000, "text": 'say "hi", you',
         "labels": {"word": "yes"}, "tags": ["dog", "rain"], "fold": "1", "speaker": "7"},
        {"id": "b", "audio_path": "/abs/y.wav", "duration": 2.0, "sample_rate": 8000, "text": "[noise]"},
    ]  # fmt: skip


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_told_from_the_header(tmp_path, delimiter):
    name = "t.tsv" if delimiter == "\t" else "t.csv"
    path = write(tmp_path / name, delimiter.join(["ID", "wav", "wrd"]), delimiter.join(["a", "x.wav", '"one\ntwo"']))
    assert read_records(path, fill=False)[0] == {"id": "a", "audio_path": f"{tmp_path}/x.wav", "text": "one\ntwo"}


def test_the_class_number_of_a_table_is_no_text(tmp_path):
    path = write(tmp_path / "esc50.csv", "filename,fold,target,category", "1-1-A-0.wav,1,0,dog")
    assert read_records(path, fill=False)[0] == {
        "id": "1-1-A-0", "audio_path": f"{tmp_path}/1-1-A-0.wav", "fold": "1", "target": "0", "category": "dog",
    }  # fmt: skip


def test_two_columns_need_no_header(tmp_path):
    path = write(tmp_path / "t.tsv", "a/x.wav\thello you", "a/y.wav\tbye")
    assert [(r["id"], r["text"]) for r in read_records(path, fill=False)] == [("a/x", "hello you"), ("a/y", "bye")]
    with pytest.raises(UserError, match="a table of 3 columns needs a header"):
        read_records(write(tmp_path / "u.tsv", "a.wav\tb\tc"))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("b,y.wav", "wrong number of cells"),
        ("b,y.wav,1,2", "wrong number of cells"),
        ("b,y.wav,long", "bad duration"),
        ("b,,1", "no audio_path"),
        ("b,ftp://y.wav,1", "a URL"),
        ("a,y.wav,1", "duplicate id"),
    ],
)
def test_a_bad_row_is_named_or_left_out(tmp_path, line, reason):
    path = write(tmp_path / "t.csv", "id,audio_path,duration", "a,x.wav,1", line, "z,z.wav,1")
    with pytest.raises(UserError, match=r"t.csv:3: "):
        read_records(path, fill=False)
    bad = []
    assert [r["id"] for r in read_records(path, fill=False, on_bad=bad.append)] == ["a", "z"]
    assert [(b["source"], b["reason"]) for b in bad] == [(f"{path}:3", reason)]


def test_text_that_is_not_utf8_is_left_out(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b"\xef\xbb\xbfid,audio_path,text\r\na,x.wav,caf\xe9\r\nb,y.wav,caf\xc3\xa9\r\n")
    bad = []
    assert [r["text"] for r in read_records(path, fill=False, on_bad=bad.append)] == ["café"]
    assert bad[0]["reason"] == "not UTF-8"


def test_a_column_named_twice_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"t.csv:1: the header names 'text' twice"):
        read_records(write(tmp_path / "t.csv", "id,audio_path,text,text", "a,x.wav,1,2"))


@pytest.mark.skipif(not HOSTILE.is_dir(), reason="needs the shared hostile manifests")
def test_semicolons_and_quotes_of_the_hostile_table():
    bad = []
    record = read_records(HOSTILE / "semicolon_quotes.csv", on_bad=bad.append)[0]
    assert record["text"] == 'a "quoted", text; with separators'
    assert [b["reason"] for b in bad] == ["duplicate id"]  # both rows are of one file


def common_voice(folder):
    write_clip(folder / "clips" / "common_voice_en_1.mp3", 1.0, 48_000)
    header = "client_id\tpath\tsentence\tup_votes\tage\tgender\tlocale"
    write(
        folder / "train.tsv",
        header,
        'f00\tcommon_voice_en_1.mp3\t"Nobody closes this quote.\t2\ttwenties\t\ten',
        "f01\tcommon_voice_en_2.mp3\tTwo.\t2\t\t\ten",
    )
    write(folder / "dev.tsv", header)
    return folder


def test_common_voice_keeps_its_quotes_and_finds_its_clips(tmp_path):
    folder = common_voice(tmp_path / "cv")
    write(folder / "clip_durations.tsv", "clip\tduration[ms]", "common_voice_en_2.mp3\t2500")
    first, second = read_records(folder / "train.tsv", fill=False)
    assert first == {
        "id": "common_voice_en_1", "audio_path": f"{folder}/clips/common_voice_en_1.mp3", "speaker": "f00",
        "text": '"Nobody closes this quote.', "up_votes": "2", "age": "twenties", "language": "en",
    }  # fmt: skip
    assert second["duration"] == 2.5
    assert "duration" not in first
    bad = []
    assert read_records(folder / "train.tsv", on_bad=bad.append)[0]["duration"] == pytest.approx(1.0, abs=0.1)
    assert [b["reason"] for b in bad] == ["no such file"]


def test_a_common_voice_release_needs_a_split(tmp_path):
    with pytest.raises(UserError, match=r"name one of its files \(dev.tsv, train.tsv\)"):
        read_records(common_voice(tmp_path))

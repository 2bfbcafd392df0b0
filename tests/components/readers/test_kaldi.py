from contextlib import nullcontext

import pytest

from components.data.readers import read_records
from tests.components.clips import write_clip
from utils.errors import UserError


def write(folder, **files):
    folder.mkdir(exist_ok=True)
    for name, lines in files.items():
        (folder / name.replace("wav_scp", "wav.scp")).write_text("".join(f"{line}\n" for line in lines))
    return folder


def test_utterances_get_text_speaker_language_and_length(tmp_path):
    folder = write(
        tmp_path / "data",
        wav_scp=["u1 /a/one file.wav", "u2 two.flac"],
        text=["u1 HELLO  THERE", "u2"],
        utt2spk=["u1 bob", "u2 u2"],
        utt2dur=["u1 1.5", "u2 2"],
        utt2lang=["u1 en", "u2 en"],
    )
    common = {"language": "en"}
    assert list(read_records(folder, fill=False)) == [
        {"id": "u1", "audio_path": "/a/one file.wav", "duration": 1.5, "text": "HELLO  THERE", "speaker": "bob"}
        | common,
        {"id": "u2", "audio_path": f"{folder}/two.flac", "duration": 2.0, "text": ""} | common,
    ]
    assert list(read_records(folder / "wav.scp", fill=False)) == list(read_records(folder, fill=False))


def test_segments_are_stretches_of_recordings(tmp_path):
    write_clip(tmp_path / "data" / "rec.wav", 2.0, 8_000, channels=2)
    folder = write(
        tmp_path / "data",
        wav_scp=["rec rec.wav"],
        segments=["b rec 0.5 1.25", "a rec 1.5 -1", "c rec 0 1 1"],
        text=["a LAST", "b FIRST", "c x"],
    )
    audio = {"audio_path": f"{folder}/rec.wav", "sample_rate": 8_000}
    assert list(read_records(folder)) == [
        {"id": "b", "offset": 0.5, "duration": 0.75, "text": "FIRST"} | audio,
        {"id": "a", "offset": 1.5, "duration": 0.5, "text": "LAST"} | audio,
        {"id": "c", "offset": 0.0, "duration": 1.0, "text": "x", "channel": 1} | audio,
    ]


@pytest.mark.parametrize(
    ("files", "reason", "detail"),
    [
        (
            {"wav_scp": ["u sph2pipe -f wav a.sph |"]},
            "a command",
            "wav.scp:1: recording 'u' is the output of a command",
        ),
        ({"wav_scp": ["u raw.ark:123"]}, "a Kaldi archive", "lies in a Kaldi archive"),
        ({"wav_scp": ["u"]}, "no audio_path", "has no path"),
        ({"wav_scp": ["u s3://a/b.wav"]}, "a URL", "fetch the file first"),
        ({"wav_scp": ["u a.wav"], "text": ["v HI"]}, "no line in text", "utterance 'u' has no line in"),
        (
            {"wav_scp": ["u a.wav"], "segments": ["s rec2 0 1"]},
            "no recording",
            "segments:1: segment 's' is of the recording",
        ),
        ({"wav_scp": ["u a.wav"], "segments": ["s u 0"]}, "half a segment", "needs a recording, a start and an end"),
        ({"wav_scp": ["u a.wav"], "segments": ["s u 0 x"]}, "bad segment", "an end 'x', in seconds"),
        ({"wav_scp": ["u a.wav"], "segments": ["s u 2 1"]}, "bad duration", "must be a positive number, not -1.0"),
        ({"wav_scp": ["u a.wav"], "utt2dur": ["u long"]}, "bad duration", "'duration' has an unusable value, 'long'"),
        ({"wav_scp": ["u a.wav", "u b.wav"]}, "duplicate id", "wav.scp:2: id 'u' was used already in"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path, files, reason, detail):
    folder = write(tmp_path, **files)
    with pytest.raises(UserError) as error:
        read_records(folder, fill=False)
    assert detail in str(error.value)
    bad = []
    with pytest.raises(UserError, match="no clip that can be used") if reason != "duplicate id" else nullcontext():
        read_records(folder, fill=False, on_bad=bad.append)
    assert [b["reason"] for b in bad] == [reason]


def test_texts_without_audio_are_counted(tmp_path, caplog):
    folder = write(tmp_path, wav_scp=["b b.wav"], text=["a A", "b B", "c C"])
    assert read_records(folder, fill=False)[0]["text"] == "B"
    assert "2 lines are of utterances that have no audio" in caplog.text


def test_paths_from_the_working_folder_are_found(tmp_path, monkeypatch):
    write_clip(tmp_path / "corpus" / "a.wav")
    folder = write(tmp_path / "data", wav_scp=["u corpus/a.wav"])
    monkeypatch.chdir(tmp_path)
    assert read_records("data")[0]["audio_path"] == f"{tmp_path}/corpus/a.wav"
    assert folder.is_dir()

import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from components.data.checks.decode import Segment, Source, measure
from components.data.checks.meter import bandwidth
from components.data.checks.problems import KINDS
from components.data.checks.text import Vocabulary, check_speed, check_text, speed_limits
from tests.components.clips import write_clip
from tests.components.examined import RATE, codes_of, examine, kept, listed, noise, write_lines
from utils.errors import UserError

HOSTILE = Path(__file__).resolve().parents[3] / "shared" / "data" / "hostile_audio"
needs_hostile = pytest.mark.skipif(not HOSTILE.is_dir(), reason="needs the shared hostile audio")


# name -> how to make the file, and what is found
DAMAGE = {
    "empty": (lambda path: path.write_bytes(b""), "unreadable"),
    "page": (lambda path: path.write_bytes(b"<!DOCTYPE html><p>404"), "unreadable"),
    "pointer": (lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"), "unreadable"),
    "folder": (lambda path: path.mkdir(), "not_a_file"),
    "pipe": (lambda path: os.mkfifo(path), "not_a_file"),
    "missing": (lambda path: None, "missing_file"),
    "no_samples": (lambda path: soundfile.write(path, np.zeros(0), RATE), "no_samples"),
    "short": (lambda path: soundfile.write(path, noise(0.01), RATE), "near_empty"),
    "nan": (lambda path: soundfile.write(path, np.vstack([noise(), [[np.nan]]]), RATE, subtype="FLOAT"), "non_finite"),
    "slow": (lambda path: soundfile.write(path, noise(), 100), "implausible_rate"),
    "cut": (lambda path: cut_wav(path, 0.4), "truncated"),
    "streamed": (lambda path: claim_bytes(path, 0xFFFFFFFF), "header_size"),
    "silent": (lambda path: soundfile.write(path, np.zeros(RATE), RATE), "silent"),
    "constant": (lambda path: soundfile.write(path, np.full(RATE, 0.5), RATE), "dc_offset"),
    "offset": (lambda path: soundfile.write(path, noise() + 0.2, RATE), "dc_offset"),
    "quiet": (lambda path: soundfile.write(path, 0.02 * noise(), RATE), "quiet"),
    "mostly_silent": (lambda path: soundfile.write(path, np.vstack([noise(0.1), 0 * noise(5)]), RATE), "mostly_silent"),
    "clipped": (lambda path: soundfile.write(path, (20 * noise()).clip(-1, 1), RATE), "clipped"),
    "over": (lambda path: soundfile.write(path, 20 * noise(), RATE, subtype="FLOAT"), "over_unity"),
    "antiphase": (lambda path: soundfile.write(path, noise() * [1, -1], RATE), "antiphase"),
    "one_sided": (lambda path: soundfile.write(path, noise() * [1, 0], RATE), "dead_channel"),
    "upsampled": (lambda path: soundfile.write(path, np.repeat(narrow(), 2, axis=1), RATE), "low_bandwidth"),
    "disguised": (lambda path: soundfile.write(path, noise(), RATE, format="FLAC"), "suffix_differs"),
}  # fmt: skip


def cut_wav(path: Path, part: float) -> None:
    soundfile.write(path, noise(2), RATE)
    path.write_bytes(path.read_bytes()[: round(part * path.stat().st_size)])


def claim_bytes(path: Path, size: int) -> None:
    soundfile.write(path, noise(), RATE)
    content = bytearray(path.read_bytes())
    place = content.index(b"data") + 4
    content[place : place + 4] = size.to_bytes(4, "little")
    path.write_bytes(content)


def narrow() -> np.ndarray:
    """Noise with nothing above 4 kHz."""
    spectrum = np.fft.rfft(noise(2)[:, 0])
    spectrum[len(spectrum) // 2 :] = 0
    return np.fft.irfft(spectrum)[:, None]


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found(tmp_path, name):
    make, code = DAMAGE[name]
    make(tmp_path / f"{name}.wav")
    found = codes_of({"audio_path": f"{name}.wav"}, tmp_path)
    assert code in found
    assert (kept(tmp_path / "out") == []) == (KINDS[code].severity == "error")
    allowed = {code, "silent"} if name == "constant" else {code}
    assert found == allowed


def test_ordinary_audio_of_many_kinds_raises_nothing(tmp_path):
    for name, rate in {"a.wav": RATE, "b.flac": 44_100, "c.ogg": 22_050, "d.mp3": 48_000}.items():
        soundfile.write(tmp_path / name, noise(1, channels=2), rate)
        assert codes_of({"audio_path": name}, tmp_path) == set(), name


def test_the_manifest_is_held_against_the_audio(tmp_path):
    write_clip(tmp_path / "a.wav", 2.0)
    clip = {"audio_path": "a.wav", "duration": 2.0, "sample_rate": RATE}
    assert codes_of(clip, tmp_path) == set()
    assert codes_of(clip | {"duration": 3.0}, tmp_path) == {"truncated"}
    assert codes_of(clip | {"duration": 1.5}, tmp_path) == {"duration_differs"}
    assert codes_of(clip | {"sample_rate": 8_000}, tmp_path) == {"rate_differs"}
    assert codes_of(clip | {"channel": 1}, tmp_path) == {"no_channel"}
    assert codes_of(clip | {"audio_path": "../a.wav"}, tmp_path / "deep") == {"outside_folder"}
    assert codes_of(clip, tmp_path, "--sample-rate", 24_000) == {"low_rate"}
    assert codes_of(clip, tmp_path, "--max-duration", 1) == {"too_long"}
    assert codes_of(clip, tmp_path, "--min-duration", 3) == {"too_short"}


def test_a_key_is_misspelt_where_few_clips_have_it(tmp_path):
    write_clip(tmp_path / "a.wav")
    lines = [{"id": str(i), "audio_path": "a.wav", "spekaer": "s"} for i in range(3)]
    examine(write_lines(tmp_path / "all.jsonl", lines), "--severity", "duplicate_audio=off", out=tmp_path)
    assert listed(tmp_path / "warnings.jsonl") == {}
    lines += [{"id": "slip", "audio_path": "a.wav", "ofset": 0.1}]
    examine(write_lines(tmp_path / "some.jsonl", lines), "--severity", "duplicate_audio=off", out=tmp_path)
    assert listed(tmp_path / "warnings.jsonl") == {"slip": {"suspicious_key"}}


def test_segments_are_measured_by_themselves(tmp_path):
    sound = np.vstack([noise(1), np.zeros((RATE, 1)), noise(1, seed=1)])
    soundfile.write(tmp_path / "long.wav", sound, RATE)
    starts = {"first": 0.0, "silence": 1.0, "last": 2.0, "beyond": 4.0, "half_beyond": 2.5}
    lines = [{"id": name, "audio_path": "long.wav", "offset": start, "duration": 1.0} for name, start in starts.items()]
    examine(write_lines(tmp_path / "a.jsonl", lines), out=tmp_path)
    assert listed(tmp_path / "dropped.jsonl") == {"beyond": {"bad_offset"}, "half_beyond": {"bad_offset"}}
    assert listed(tmp_path / "warnings.jsonl") == {"silence": {"silent"}}


def test_a_segment_is_the_same_however_the_file_is_read(tmp_path):
    soundfile.write(tmp_path / "long.wav", noise(40), RATE)
    soundfile.write(tmp_path / "piece.wav", soundfile.read(tmp_path / "long.wav")[0][17 * RATE : 18 * RATE], RATE)
    whole, piece = measure(Source(str(tmp_path / "long.wav")), [Segment(), Segment(17.0, 1.0)]).segments
    assert piece["hash"] == measure(Source(str(tmp_path / "piece.wav")), [Segment()]).segments[0]["hash"]
    assert whole["num_samples"] == 40 * RATE
    assert piece["num_samples"] == RATE


def test_audio_inside_of_containers(tmp_path):
    h5py = pytest.importorskip("h5py")
    write_clip(tmp_path / "a.flac", 0.5)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "a.flac", "a.flac")
    with tarfile.open(tmp_path / "a.tar") as tar:
        place = tar.getmember("a.flac").offset_data
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["clip"] = soundfile.read(tmp_path / "a.flac", dtype="float32")[0]
        file["clip"].attrs["sample_rate"] = RATE
    alone, packed, member = (
        measure(source, [Segment()]).segments[0]["hash"]
        for source in (
            Source(str(tmp_path / "a.flac")),
            Source(str(tmp_path / "a.tar"), place, (tmp_path / "a.flac").stat().st_size),
            Source(str(tmp_path / "a.h5"), member="clip"),
        )
    )
    assert alone == packed == member
    assert measure(Source(str(tmp_path / "a.h5"), member="other"), [Segment()]).error[0] == "missing_file"


@pytest.mark.parametrize(
    ("text", "codes"),
    [
        ("plain words", []),
        ("deux façons", []),
        ("", ["blank_text"]),
        (" \t ", ["blank_text"]),
        ("\u200b\ufeff", ["blank_text"]),
        ("a\0b", ["control_characters"]),
        ("half \ud83d", ["control_characters"]),
        ("\u202eabc", ["invisible_characters"]),
        ("caf\ufffd", ["replacement_character"]),
        ("cafe\u0301", ["not_nfc"]),
        ("two  spaces", ["untidy_spaces"]),
        ("end\n", ["untidy_spaces"]),
    ],
)
def test_texts(text, codes):
    assert [problem.code for problem in check_text(text, None)] == codes


def test_vocabularies(tmp_path):
    (tmp_path / "tokens.txt").write_text("<blank> 0\n▁the 1\ncat 2\ns 3\n| 4\n", encoding="utf-8")
    (tmp_path / "vocab.json").write_text(json.dumps({"[PAD]": 0, "|": 1, "a": 2, "é": 3}), encoding="utf-8")
    pieces = Vocabulary.from_file(tmp_path / "tokens.txt")
    assert pieces.tokenize(" the cats") == [" the", " ", "cat", "s"]
    characters = Vocabulary.from_file(tmp_path / "vocab.json")
    assert characters.characters == {" ", "a", "é"}
    [problem] = check_text("a é B2", characters)
    assert (problem.code, problem.detail) == (
        "out_of_vocabulary", "2 U+0032 digit two, B U+0042 latin capital letter b",
    )  # fmt: skip
    with pytest.raises(UserError, match="no token that is text"):
        Vocabulary(["<blank>"])
    with pytest.raises(UserError, match="cannot read"):
        Vocabulary.from_file(tmp_path / "nowhere.txt")


def test_a_text_is_ctc_feasible_exactly_where_the_loss_is_finite():
    rng = np.random.default_rng(0)
    outcomes = set()
    for _ in range(60):
        text = "".join(rng.choice(list("abc"), rng.integers(1, 8)))
        frames = int(rng.integers(1, 12))
        log_probs = torch.randn(frames, 1, 4).log_softmax(-1)
        targets = torch.tensor(["_abc".index(character) for character in text])
        loss = torch.nn.functional.ctc_loss(log_probs, targets[None], (frames,), (len(text),))
        problems = check_speed(text, frames / 25, 25.0, None)
        assert torch.isinf(loss) == any(problem.code == "ctc_infeasible" for problem in problems)
        outcomes.add(bool(torch.isinf(loss)))
    assert outcomes == {True, False}


def test_limits_of_speed_are_robust():
    speeds = np.concatenate([np.random.default_rng(0).normal(15, 2, 500), [1, 500.0, 500.0]])
    low, high = speed_limits(speeds)
    assert 1 < low < 10
    assert 22 < high < 60
    assert speed_limits(speeds[:19]) is None


def test_bandwidth_is_that_of_the_content():
    dull = 1 / (1 + np.arange(513) / 20) ** 4  # declines all the way, no cliff
    assert bandwidth(dull, RATE) == RATE / 2
    cut = np.where(np.arange(513) < 256, 1.0, 1e-9)
    assert bandwidth(cut, RATE) == pytest.approx(4_000, rel=0.05)
    assert bandwidth(np.zeros(513), RATE) is None


# file -> what the bare file is found to be; what is not named here raises nothing
HOSTILE_CASES = {
    "aac.m4a": {"unreadable"},
    "clip.flac": set(),
    "clip.mp3": set(),
    "clip.ogg": set(),
    "clip.opus": set(),
    "clipped.wav": {"clipped", "dc_offset"},
    "dc_offset.wav": {"dc_offset", "silent"},
    "directory.wav": {"not_a_file"},
    "empty_file.wav": {"unreadable"},
    "flac_bitrot.flac": {"decoder_failed"},
    "float_peak_4.wav": {"over_unity"},
    "git_lfs_pointer.flac": {"unreadable"},
    "huge_duration_header.wav": {"header_size"},
    "mp3_content.wav": {"suffix_differs"},
    "ms_adpcm.wav": set(),
    "nan_inf_float32.wav": {"non_finite"},
    "one_hour_silence.flac": {"silent", "low_rate", "too_long"},
    "one_sample.wav": {"near_empty"},
    "pcm24_96k.wav": {"low_bandwidth"},
    "pcm_u8_11k.wav": {"low_rate"},
    "rate_1hz.wav": {"implausible_rate"},
    "rate_8k.wav": {"low_rate"},
    "rate_zero.wav": {"unreadable"},
    "shorter_than_window.wav": {"near_empty"},
    "six_channel.wav": {"dead_channel"},
    "stereo_44k1.wav": {"low_bandwidth"},
    "stereo_antiphase.wav": {"antiphase"},
    "stream_size_ffffffff.wav": {"header_size"},
    "text_content.wav": {"unreadable"},
    "truncated.wav": {"truncated"},
    "ulaw_8k.wav": {"low_rate"},
    "zero_frames.wav": {"no_samples"},
    "имя с пробелом, 'quote' & é.wav": set(),
}


@needs_hostile
def test_every_hostile_file_gets_its_verdict(tmp_path):
    lines = [{"id": name, "audio_path": str(HOSTILE / name)} for name in HOSTILE_CASES]
    manifest = write_lines(tmp_path / "a.jsonl", lines)
    options = ["--sample-rate", RATE, "--max-duration", 60, "--severity", "duplicate_audio=off"]
    options += ["--severity", "outside_folder=off"]
    _, report = examine(manifest, *options, out=tmp_path)
    found = {name: set() for name in HOSTILE_CASES}
    for row in report["problems"]:
        for example in row["examples"]:
            found[example["id"]].add(row["code"])
    assert len(found) == 33
    assert found == HOSTILE_CASES
    refused = {name for name, codes in found.items() if any(KINDS[code].severity == "error" for code in codes)}
    assert set(listed(tmp_path / "dropped.jsonl")) == refused
    seen = {example["id"]: example["detail"] for row in report["problems"] for example in row["examples"]}
    assert "git lfs pull" in seen["git_lfs_pointer.flac"]
    assert "AAC" in seen["aac.m4a"]
    assert "web page" in seen["text_content.wav"]
    assert "0 Hz" in seen["rate_zero.wav"]


@needs_hostile
def test_a_promise_of_hours_is_not_trusted(tmp_path):
    line = {"id": "a", "audio_path": str(HOSTILE / "huge_duration_header.wav"), "duration": 67_108.0}
    assert codes_of(line, tmp_path, "--severity", "outside_folder=off") == {"truncated", "header_size"}


SEMANTIC = {
    "missing_file": "missing_file", "empty_text": "blank_text", "whitespace_text": "blank_text",
    "null_text": "missing_text", "int_text": "line/bad text", "no_text_key": "missing_text",
    "oov_text": "control_characters", "text_longer_than_audio": "too_much_text",
    "negative_duration": "line/bad duration", "zero_duration": "line/bad duration",
    "string_duration": "line/bad duration", "wrong_duration": "truncated", "offset_past_end": "bad_offset",
    "negative_offset": "line/bad offset", "traversal_path": "missing_file", "url_path": "line/a URL",
    "directory_path": "not_a_file", "tags_as_string": "line/bad tags", "duplicate_id": "line/duplicate id",
}  # fmt: skip


@needs_hostile
def test_every_hostile_line_gets_its_verdict(tmp_path):
    manifest = HOSTILE / "manifests" / "semantic_errors.jsonl"
    _, report = examine(manifest, out=tmp_path)
    dropped = listed(tmp_path / "dropped.jsonl")
    assert dropped.keys() == SEMANTIC.keys()
    assert all(code in dropped[name] for name, code in SEMANTIC.items())
    warned = listed(tmp_path / "warnings.jsonl")
    for name, code in {
        "nfd_text": "not_nfc", "bidi_zero_width": "invisible_characters", "wrong_rate": "rate_differs",
        "unknown_key": "suspicious_key",
    }.items():  # fmt: skip
        assert code in warned[name]
    assert set(kept(tmp_path)) == {*warned, "ok"} - SEMANTIC.keys() | {"duplicate_id"}
    assert report["classes"] == {"tags": {"zebra": [1]}}


@needs_hostile
@pytest.mark.parametrize(
    ("name", "num_kept", "num_dropped"),
    [
        ("malformed.jsonl", 1, 5),
        ("nan_duration.jsonl", 0, 2),
        ("latin1_bytes.jsonl", 0, 1),
        ("utf16.jsonl", 0, 1),
        ("bom_crlf.jsonl", 2, 0),
        ("empty.jsonl", 0, 1),
        ("semicolon_quotes.csv", 1, 1),
    ],
)
def test_every_hostile_manifest_is_survived(tmp_path, name, num_kept, num_dropped):
    code, report = examine(HOSTILE / "manifests" / name, out=tmp_path)
    assert (report["total"]["kept"], report["total"]["dropped"]) == (num_kept, num_dropped)
    assert code == (1 if num_dropped else 0)

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from components.data import doctor, read_manifest, write_manifest
from components.data.checks import pool
from components.data.checks.decode import Segment, Source, measure
from tests.components.clips import write_clip, write_corpus
from tests.components.examined import RATE, codes_of, examine, kept, listed, noise, write_lines
from utils.errors import UserError


def test_a_sound_corpus_is_kept_whole(tmp_path, capsys):
    manifest = write_corpus(tmp_path)
    assert doctor.main([str(manifest)]) == 0
    out = tmp_path / "clips.jsonl.doctor"
    assert [record["id"] for record in read_manifest(out / "kept.jsonl")] == ["clip0", "clip1", "clip2"]
    assert listed(out / "dropped.jsonl") == listed(out / "warnings.jsonl") == {}
    report = json.loads((out / "report.json").read_text())
    assert report["total"]["hours"] == pytest.approx(1.2 / 3600, abs=1e-6)
    assert report["audio"]["kinds"] == [
        {"sample_rate": RATE, "channels": 1, "encoding": "WAV PCM_16", "clips": 3, "hours": pytest.approx(0.000333)}
    ]
    assert sum(report["histograms"]["duration"]["counts"]) == 3
    assert {file.name for file in out.iterdir()} == {
        "cache.sqlite", "dropped.jsonl", "index.html", "kept.jsonl", "report.json", "warnings.jsonl",
    }  # fmt: skip
    assert "clips: 3 clips, 0.00 h\n  kept 3   dropped 0 (0.0 %)" in capsys.readouterr().out


def test_what_is_missing_in_a_record_is_filled_in_from_the_audio(tmp_path):
    write_clip(tmp_path / "a.wav", 0.5)
    examine(write_lines(tmp_path / "a.jsonl", [{"id": "a", "audio_path": "a.wav"}]), out=tmp_path)
    [record] = read_manifest(tmp_path / "kept.jsonl")
    assert (record["duration"], record["sample_rate"]) == (0.5, RATE)
    assert Path(record["audio_path"]) == tmp_path / "a.wav"


def test_texts_are_judged_with_their_audio(tmp_path):
    lines = []
    for i in range(30):
        write_clip(tmp_path / f"{i}.wav", 1.0, seed=i)
        lines.append({"id": f"c{i}", "audio_path": f"{i}.wav", "text": "fifteen letters"})
    lines[0]["text"] = "a"
    lines[1]["text"] = "too long for a second " * 5
    lines[2]["text"] = "Z is odd here 15"
    del lines[3]["text"]
    (tmp_path / "vocab.txt").write_text("\n".join("abcdefghijklmnopqrstuvwxyz|"))
    manifest = write_lines(tmp_path / "a.jsonl", lines)
    _, report = examine(manifest, "--frame-rate", 25, "--vocab", tmp_path / "vocab.txt", out=tmp_path)
    assert listed(tmp_path / "warnings.jsonl") == {"c0": {"chars_per_second"}}
    dropped = listed(tmp_path / "dropped.jsonl")
    assert {"too_much_text", "ctc_infeasible"} <= dropped.pop("c1")
    assert dropped == {"c2": {"out_of_vocabulary"}, "c3": {"missing_text"}}
    assert set(report["characters"]["outside"]) == set("Z15")


def test_one_case_for_another_is_pointed_out(tmp_path):
    write_clip(tmp_path / "a.wav")
    (tmp_path / "vocab.txt").write_text("\n".join("ABCDEFGHIJKLMNOPQRSTUVWXYZ|"))
    manifest = write_lines(tmp_path / "a.jsonl", [{"id": "a", "audio_path": "a.wav", "text": "lower"}])
    _, report = examine(manifest, "--vocab", tmp_path / "vocab.txt", out=tmp_path)
    assert "1 texts would fit the vocabulary in the other case" in report["findings"][0]["sentence"]


def test_bad_lines_end_nothing(tmp_path):
    write_clip(tmp_path / "a.wav")
    good = json.dumps({"id": "a", "audio_path": "a.wav"}).encode()
    lines = [b"not json", good, b"[1]", b'{"id": "caf\xe9"}', good, good[:-9]]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    code, report = examine(tmp_path / "a.jsonl", out=tmp_path)
    assert code == 1
    assert report["total"] | {"hours": 0} == {
        "clips": 6, "kept": 1, "dropped": 5, "warned": 0, "hours": 0, "bad_fraction": pytest.approx(5 / 6, abs=1e-6),
    }  # fmt: skip
    assert {row["code"]: row["clips"] for row in report["problems"]} == {
        "line/not valid JSON": 2, "line/no JSON object": 1, "line/not UTF-8": 1, "line/duplicate id": 1,
    }  # fmt: skip
    places = [json.loads(line)["source"] for line in (tmp_path / "dropped.jsonl").read_text().splitlines()]
    assert [place.rpartition(":")[2] for place in places] == ["1", "3", "4", "5", "6"]


def test_a_manifest_without_clips_fails(tmp_path):
    (tmp_path / "a.jsonl").touch()
    code, report = examine(tmp_path / "a.jsonl", "--max-bad-fraction", 0.5, out=tmp_path)
    assert code == 1
    assert report["problems"][0]["code"] == "line/unusable manifest"


def test_splits_are_compared(tmp_path):
    for i in range(5):
        write_clip(tmp_path / f"{i}.wav", 0.5, seed=i)
    soundfile.write(tmp_path / "again.flac", soundfile.read(tmp_path / "0.wav")[0], RATE)
    clip = [{"id": f"c{i}", "audio_path": f"{i}.wav", "text": f"text {i}", "speaker": f"s{i}"} for i in range(5)]
    train = [clip[0], clip[1], clip[2] | {"id": "copy", "audio_path": "again.flac"}, clip[3]]
    test = [clip[4] | {"speaker": "s1", "text": "TEXT 1"}, clip[3] | {"id": "leak"}]
    files = [write_lines(tmp_path / f"{name}.jsonl", lines) for name, lines in {"train": train, "test": test}.items()]

    _, report = examine(files[0], "--against", files[1], out=tmp_path / "against")
    assert listed(tmp_path / "against" / "dropped.jsonl") == {"c3": {"leaked_audio"}}
    assert listed(tmp_path / "against" / "warnings.jsonl") == {
        "c0": {"conflicting_targets"}, "copy": {"duplicate_audio", "conflicting_targets"},
    }  # fmt: skip
    shared = {row["what"]: (row["shared"], row["of"], row["examples"]) for row in report["overlaps"]}
    assert shared["speakers"] == (2, [4, 2], ["s1", "s3"])
    assert shared["texts"][:2] == (2, [4, 2])
    assert shared["recordings"] == (1, [3, 2], ["c3"])
    assert kept(tmp_path / "against") == ["c0", "c1", "copy"]

    examine(*files, out=tmp_path / "both")
    assert listed(tmp_path / "both" / "warnings.jsonl")["leak"] == {"shared_audio"}
    assert kept(tmp_path / "both") == ["c0", "c1", "copy", "c3", "c4", "leak"]
    examine(
        *files, "--against", write_lines(tmp_path / "third.jsonl", [clip[3] | {"id": "third"}]), out=tmp_path / "three"
    )
    assert listed(tmp_path / "three" / "dropped.jsonl") == {"c3": {"leaked_audio"}, "leak": {"leaked_audio"}}
    assert len(read_manifest(tmp_path / "both" / "kept.train.jsonl")) == 4
    assert len(read_manifest(tmp_path / "both" / "kept.test.jsonl")) == 2


def test_only_what_is_said_can_contradict(tmp_path):
    write_clip(tmp_path / "a.wav")
    says = [{"text": "one"}, {"text": "One "}, {"label": "1"}, {"label": "2"}, {}]
    lines = [{"id": str(i), "audio_path": "a.wav"} | line for i, line in enumerate(says)]
    examine(write_lines(tmp_path / "a.jsonl", lines), "--severity", "untidy_spaces=off", out=tmp_path)
    warned = listed(tmp_path / "warnings.jsonl")
    assert {name for name, codes in warned.items() if "conflicting_targets" in codes} == {"2", "3"}
    assert {name for name, codes in warned.items() if "duplicate_audio" in codes} == {"1", "2", "3", "4"}


def test_classes_and_rates_of_whole_manifests(tmp_path):
    train, test = (write_corpus(tmp_path / name, labels=labels) for name, labels in
                   {"train": ("yes", "no", "yes"), "test": ("yes", "yes", "maybe")}.items())  # fmt: skip
    write_clip(tmp_path / "test" / "clip0.wav", 0.5, sample_rate=8_000)
    _, report = examine(train, test, "--sample-rate", 12_000, out=tmp_path)
    assert report["classes"] == {"word": {"yes": [2, 2], "maybe": [0, 1], "no": [1, 0]}}
    sentences = "\n".join(finding["sentence"] for finding in report["findings"])
    assert "word: 1 of 3 classes are absent from test/clips: no" in sentences
    assert "word: only one clip each has maybe, no" in sentences
    assert "sample rates are mixed: 5 at 16000 Hz, 1 at 8000 Hz" in sentences
    assert "1 of 6 clips have a rate below the model's 12000 Hz" in sentences
    assert "5 of 6 clips lose what they have above 6000 Hz" in sentences


def test_severities_and_the_share_that_is_fine(tmp_path):
    manifest = write_corpus(tmp_path)
    soundfile.write(tmp_path / "clip0.wav", np.zeros(RATE // 2), RATE)
    (tmp_path / "clip1.wav").write_bytes(b"")
    assert examine(manifest, out=tmp_path)[0] == 1
    assert examine(manifest, "--max-bad-fraction", 0.34, out=tmp_path)[0] == 0
    assert examine(manifest, "--severity", "silent=error", out=tmp_path)[1]["total"]["dropped"] == 2
    code, report = examine(manifest, "--severity", "silent=off", "--severity", "unreadable=warning", out=tmp_path)
    assert code == 0
    assert [row["code"] for row in report["problems"]] == ["unreadable"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere.jsonl"], "there is no manifest nowhere.jsonl"),
        (["a.jsonl", "--against", "./a.jsonl"], "given twice"),
        (["a.jsonl", "--severity", "silence=error"], "no problem called 'silence'"),
        (["a.jsonl", "--severity", "silent=fatal"], "expected error, warning, note or off"),
    ],
)
def test_mistakes_at_the_prompt_are_one_sentence(tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "a.jsonl", [])
    with pytest.raises(UserError, match=says):
        doctor.main(arguments)


@pytest.mark.parametrize("option", [["--frame-rate", "0"], ["--max-bad-fraction", "2"], ["--num-processes", "-1"]])
def test_numbers_at_the_prompt_are_checked(option, capsys):
    with pytest.raises(SystemExit) as ended:
        doctor.main(["a.jsonl", *option])
    assert ended.value.code == 2
    assert f"argument {option[0]}: invalid" in capsys.readouterr().err


def test_a_second_run_decodes_only_what_changed(tmp_path):
    manifest = write_corpus(tmp_path)
    (tmp_path / "clip2.wav").write_bytes(b"")
    _, first = examine(manifest, out=tmp_path)
    _, second = examine(manifest, out=tmp_path)
    assert (first["run"]["decoded"], second["run"]["decoded"]) == (3, 0)
    assert second["problems"] == first["problems"]
    assert second["histograms"] == first["histograms"]
    write_clip(tmp_path / "clip2.wav", 0.4)
    _, third = examine(manifest, out=tmp_path)
    assert (third["run"]["decoded"], third["total"]["dropped"]) == (1, 0)


def test_a_damaged_cache_is_begun_anew(tmp_path):
    manifest = write_corpus(tmp_path)
    examine(manifest, out=tmp_path)
    (tmp_path / "cache.sqlite").write_bytes(b"no database at all, but long enough to look at" * 100)
    code, report = examine(manifest, out=tmp_path)
    assert (code, report["run"]["decoded"]) == (0, 3)


def _dies_of_clip1(source: Source, segments: list[Segment]):
    if source.path.endswith("clip1.wav"):
        os.kill(os.getpid(), signal.SIGKILL)
    return measure(source, segments)


def test_a_file_that_kills_its_decoder_is_one_bad_file(tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "measure", _dies_of_clip1)
    manifest = write_corpus(tmp_path, durations=[0.3] * 20, labels=["yes"] * 20)
    assert doctor.main([str(manifest), "--out", str(tmp_path), "--num-processes", "2"]) == 1
    assert listed(tmp_path / "dropped.jsonl") == {"clip1": {"decoder_died"}}
    assert len(kept(tmp_path)) == 19


def test_processes_change_nothing(tmp_path):
    manifest = write_corpus(tmp_path, durations=[0.3 + 0.01 * i for i in range(20)], labels=["yes"] * 20)
    (tmp_path / "clip7.wav").write_bytes(b"RIFF")
    _, alone = examine(manifest, out=tmp_path / "alone")
    doctor.main([str(manifest), "--out", str(tmp_path / "together"), "--num-processes", "3"])
    together = json.loads((tmp_path / "together" / "report.json").read_text())
    assert {**alone, "run": None} == {**together, "run": None}
    for name in ("kept.jsonl", "dropped.jsonl", "warnings.jsonl"):
        assert (tmp_path / "alone" / name).read_bytes() == (tmp_path / "together" / name).read_bytes()


def test_decoders_are_not_heard_on_the_screen(tmp_path, capfd):
    soundfile.write(tmp_path / "a.mp3", noise(3), RATE)
    content = bytearray((tmp_path / "a.mp3").read_bytes())
    del content[len(content) // 3 : len(content) // 3 + 100]
    (tmp_path / "a.mp3").write_bytes(content)
    assert "decoder_complains" in codes_of({"audio_path": "a.mp3"}, tmp_path)
    assert capfd.readouterr().err == ""


def test_the_page_is_whole_and_nothing_in_it_runs(tmp_path):
    name = "<script>alert(1)</script>\u202e.wav"
    write_clip(tmp_path / "a.wav")
    lines = [{"id": name, "audio_path": "nowhere.wav"}, {"id": "b", "audio_path": "a.wav", "text": "<b>\u202e"}]
    examine(write_lines(tmp_path / "a.jsonl", lines), out=tmp_path)
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(1)&lt;/script&gt;\\u202e.wav" in page
    for forbidden in ("<script", "\u202e", "http://", "https://", "src=", "<link", "url("):
        assert forbidden not in page
    assert page.count("<section>") == page.count("</section>") >= 4
    assert "<svg" in page


def test_odd_names_and_halves_of_characters_pass_through(tmp_path):
    name = os.fsdecode(b"caf\xe9 \xf0 'quote' & .wav")
    write_clip(tmp_path / "a.wav")
    (tmp_path / "a.wav").rename(tmp_path / name)
    line = {"id": "half \ud83d", "audio_path": name, "speaker": "\ud83d"}
    code, _ = examine(write_lines(tmp_path / "a.jsonl", [line]), out=tmp_path)
    assert code == 0
    [record] = map(json.loads, (tmp_path / "kept.jsonl").read_text().splitlines())
    assert record["id"] == "half \ud83d"
    assert Path(record["audio_path"]).exists()


@pytest.mark.slow
def test_a_killed_run_leaves_what_it_measured_and_no_processes(tmp_path):
    manifest = write_corpus(tmp_path, durations=[0.3] * 10, labels=["yes"] * 10)
    lines = [dict(line) for line in read_manifest(manifest) * 300]
    for i, line in enumerate(lines):
        source = tmp_path / line["audio_path"]
        line |= {"id": str(i), "audio_path": f"{i}.wav"}
        os.link(source, tmp_path / f"{i}.wav")
    write_manifest(manifest, lines)
    code = (
        "import sys, time; from components.data import doctor; from components.data.checks import cache, pool;"
        "cache._COMMIT_SECONDS = 0.05; measure = pool.measure;"
        "pool.measure = lambda *job: time.sleep(0.02) or measure(*job);"
        f"doctor.main([{str(manifest)!r}, '--out', {str(tmp_path / 'out')!r}, '--num-processes', '2'])"
    )
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    log = tmp_path / "out" / "cache.sqlite-wal"
    deadline = time.monotonic() + 60
    while (not log.exists() or log.stat().st_size < 60_000) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
    _, report = examine(manifest, out=tmp_path / "out")
    assert 0 < report["run"]["from_cache"] < 3_000
    assert report["total"]["kept"] == 3_000
    for _ in range(100):  # its workers see that they are alone within a second
        if not _processes_of(process.pid):
            break
        time.sleep(0.05)
    assert _processes_of(process.pid) == []


def _processes_of(session: int) -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(status.parent.name))
    return found

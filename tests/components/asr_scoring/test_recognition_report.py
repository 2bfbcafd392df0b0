import json
import random

import pytest

from components.metrics.error_rates import ErrorCounts
from components.metrics.recognition_command import main
from components.metrics.recognition_report import RecognitionReport
from components.text import Normalize
from utils.errors import UserError

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def records(number=120, wrong=0.1, seed=0):
    """The same utterances for every `seed`, other errors."""
    texts, lots = random.Random(0), random.Random(seed)
    found = []
    for i in range(number):
        words = texts.choices(WORDS, k=texts.randint(3, 7))
        said = [lots.choice(WORDS) if lots.random() < wrong else word for word in words]
        about = {"speaker": f"s{i % 3}", "duration": texts.uniform(0.5, 6), "labels": {"room": "ab"[i % 2]}}
        snr = {"snr": texts.gauss(10, 5)}
        found.append({"id": f"u{i}", "reference": " ".join(words), "hypothesis": " ".join(said), **about, **snr})
    return found


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_rates_slices_and_confusions():
    rows = [
        {"id": "a", "reference": "one two", "hypothesis": "one too", "speaker": "x", "duration": 0.5},
        {"id": "b", "reference": "one two", "hypothesis": "two", "speaker": "y", "duration": 2.5},
        {"id": "c", "reference": "", "hypothesis": "two", "speaker": "y"},
    ]
    report = RecognitionReport(rows)
    assert report.counts.as_row() == (1, 1, 1, 4, 4, 3, 3)
    assert report.confusions["substitute"] == {("two", "too"): 1}
    assert report.confusions["delete"] == {("one", ""): 1}
    assert report.confusions["insert"] == {("", "two"): 1}
    found = {(one.field, one.value): one.counts.errors for one in report.slices}
    assert found == {
        ("speaker", "x"): 1,
        ("speaker", "y"): 2,
        ("duration", "< 1"): 1,
        ("duration", "2 .. 3"): 1,
        ("duration", "(none)"): 1,
    }
    assert report.headline.startswith("WER 75.00 %")
    assert "1 substituted, 1 deleted, 1 inserted of 4 | SER 100.00 % of 3" in report.headline


def test_slices_of_any_field_add_up_to_the_whole():
    report = RecognitionReport(records(), slices=("speaker", "duration", "labels.room", "snr", "nothing"))
    assert report.slice_fields == ["speaker", "duration", "labels.room", "snr"]
    for field in report.slice_fields:
        parts = [one.counts for one in report.slices if one.field == field]
        assert sum(parts, ErrorCounts()) == report.counts
    values = {field: [one.value for one in report.slices if one.field == field] for field in report.slice_fields}
    assert values["speaker"] == ["s0", "s1", "s2"]
    assert values["duration"] == ["< 1", "1 .. 2", "2 .. 3", "3 .. 5", "5 .. 10"]
    assert len(values["snr"]) == 4
    assert [one.counts.num_items for one in report.slices if one.field == "snr"] == pytest.approx([30] * 4, abs=1)


def test_numbers_of_few_values_are_named_in_their_order():
    rows = [{"id": str(i), "reference": "a", "hypothesis": "a", "floor": i % 3 * 5} for i in range(9)]
    assert [one.value for one in RecognitionReport(rows, slices=("floor",)).slices] == ["0", "5", "10"]


def test_records_of_several_processes_make_the_same_report():
    rows = records()
    mine = RecognitionReport([*rows[1::2], *rows[0::2], rows[0]])  # the last batch was shared
    assert mine.counts == RecognitionReport(rows).counts
    with pytest.raises(UserError, match="'u0' comes twice, with two texts"):
        RecognitionReport([*rows, rows[0] | {"hypothesis": "other"}])


def test_both_texts_are_normalised_alike():
    rows = [{"id": "a", "reference": "Don't stop!", "hypothesis": "don’t, stop"}]
    assert RecognitionReport(rows).counts.errors == 2
    report = RecognitionReport(rows, normalize=Normalize(case="lower", punctuation="remove"))
    assert report.counts.errors == 0
    assert report.summary()["normalize"]["case"] == "lower"


def test_phones_are_tokens():
    rows = [{"id": "a", "reference": ["tʃ", "iː", "z"], "hypothesis": ["tʃ", "z"]}]
    report = RecognitionReport(rows, unit="token")
    assert report.rate_name == "per"
    assert report.counts.rate == pytest.approx(1 / 3)
    with pytest.raises(UserError, match="unit: 'phone' is none of"):
        RecognitionReport(rows, unit="phone")


def test_a_collapse_is_in_the_report():
    silent = [row | {"hypothesis": ""} for row in records(20)]
    assert "almost nothing is recognised" in str(RecognitionReport(silent))
    parrot = [row | {"hypothesis": "one two three four five"} for row in records(20)]
    assert "nearly all utterances get the same transcription" in RecognitionReport(parrot).warning
    assert RecognitionReport(records(20)).warning is None


def test_files_hold_all_of_it(tmp_path):
    report = RecognitionReport(records())
    report.write(tmp_path / "new" / "report")
    folder = tmp_path / "new" / "report"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["wer"] == report.counts.rate
    assert summary["interval"] == list(report.interval)
    assert summary["ser_interval"][0] < summary["ser"] < summary["ser_interval"][1]
    utterances = [json.loads(line) for line in (folder / "utterances.jsonl").read_text().splitlines()]
    assert sum(row["errors"] for row in utterances) == report.counts.errors
    assert [row["id"] for row in utterances] == [row["id"] for row in records()]
    for row in utterances:
        assert " ".join(wanted for _, wanted, _ in row["alignment"] if wanted) == row["reference"]
        assert sum(mark != "" for mark, _, _ in row["alignment"]) == row["errors"]
    confusions = [json.loads(line) for line in (folder / "confusions.jsonl").read_text().splitlines()]
    assert sum(row["count"] for row in confusions) == report.counts.errors
    text = (folder / "report.txt").read_text()
    assert report.headline in text
    worst = max(utterances, key=lambda row: row["errors"])["id"]
    assert f"\n{worst}\nref " in text


def test_an_infinite_rate_is_null_in_json(tmp_path):
    RecognitionReport([{"id": "a", "reference": "", "hypothesis": "x"}]).write(tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text())["wer"] is None


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([], "there is no utterance to score"),
        ([{"reference": "a"}], "a record has no 'id'"),
        ([{"id": "a", "reference": "b"}], "'a' has no 'hypothesis'"),
    ],
)
def test_what_can_not_be_scored_is_refused(rows, sentence):
    with pytest.raises(UserError, match=sentence):
        RecognitionReport(rows)


# -------------------------------------------------------------------------------------------------------------- prompt


def test_the_prompt_scores_and_compares(tmp_path, capsys):
    good, bad = write(tmp_path / "good.jsonl", records(wrong=0.05)), write(tmp_path / "bad.jsonl", records(wrong=0.3))
    assert (
        main([good, "--against", bad, "--out", str(tmp_path / "out"), "--by", "labels.room", "--num-draws", "50"]) == 0
    )
    printed = capsys.readouterr().out
    assert printed.startswith(RecognitionReport(records(wrong=0.05)).headline.partition("(")[0])
    assert "labels.room  a " in printed
    assert "points" in printed
    assert ": better, p = " in printed
    against = json.loads((tmp_path / "out" / "against.json").read_text())
    assert against["difference"] < 0
    assert len(against["interval"]) == 2
    assert main([bad, "--against", good, "--num-draws", "50"]) == 0
    assert ": worse, p = " in capsys.readouterr().out
    assert main([good, "--against", good, "--num-draws", "50"]) == 0
    assert "which may be chance, p = 1 by" in capsys.readouterr().out


def test_files_of_several_processes_are_one_run(tmp_path, capsys):
    rows = records()
    parts = [write(tmp_path / f"rank{i}.jsonl", rows[i::2]) for i in range(2)]
    assert main([*parts, "--num-draws", "10"]) == 0
    assert RecognitionReport(rows).headline.partition("(")[0] in capsys.readouterr().out


def test_references_and_speakers_come_from_a_manifest_by_id(tmp_path, capsys):
    rows = records(12, wrong=0.5)
    audio = {"audio_path": "a.wav", "sample_rate": 8_000}
    manifest = [{"id": r["id"], **audio, "duration": 1.0, "text": r["reference"], "speaker": "ann"} for r in rows]
    path = write(tmp_path / "test.jsonl", manifest)
    for key in ("hypothesis", "text", "pred_text"):
        said = write(tmp_path / "said.jsonl", [{"id": r["id"], key: r["hypothesis"]} for r in rows])
        assert main([said, "--manifest", path, "--num-draws", "10"]) == 0
        printed = capsys.readouterr().out
        assert f"WER {100 * RecognitionReport(rows).counts.rate:.2f} %" in printed
        assert "speaker   ann" in printed


def test_normalisers_and_units_of_the_prompt(tmp_path, capsys):
    rows = write(tmp_path / "a.jsonl", [{"id": "a", "ref": "甚至 出现!", "hyp": "甚至出见"}])
    assert main([rows, "--normalize", "characters", "--unit", "char"]) == 0
    assert "CER 25.00 %" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("row", "options", "sentence"),
    [
        ({"id": "a", "hyp": "b"}, [], "'a' has no reference, only id, hyp: name its key with --reference"),
        ({"id": "a", "words": "b"}, [], "'a' has no hypothesis"),
        ({"id": "a", "ref": "b", "hyp": "c"}, ["--by", "speakr"], "--by speakr: no utterance"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, row, options, sentence):
    with pytest.raises(UserError, match=sentence):
        main([write(tmp_path / "a.jsonl", [row]), *options])
    (tmp_path / "a.jsonl").write_text("{no json\n")
    with pytest.raises(UserError, match=r"a.jsonl:1: "):
        main([str(tmp_path / "a.jsonl")])

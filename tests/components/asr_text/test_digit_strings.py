import hashlib
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from components.data import AudioDataset, read_manifest
from components.data.recipes.digit_strings import (
    PRONUNCIATIONS,
    prepare_digit_strings,
    prepare_spoken_digit_strings,
)
from components.data.recipes.spoken_digits import WORDS
from tests.components.clips import write_clip
from utils.errors import UserError

DIGITS = Path("../shared/data/spoken_digits")
NUM_STRINGS = {"train": 8, "val": 4, "test": 4, "unseen": 4}
SPLITS = tuple(NUM_STRINGS)
needs_espeak = pytest.mark.skipif(importlib.util.find_spec("espeakng_loader") is None, reason="needs espeakng-loader")


@pytest.fixture(scope="module")
def single_digits(tmp_path_factory):
    """Ten digits by three speakers: take 0 for test, 10 for validation, 20 for training; each another tone."""
    folder = tmp_path_factory.mktemp("digits")
    for s, speaker in enumerate(("ann", "ben", "cleo")):
        for digit in range(10):
            for take in (0, 10, 20):
                seconds = 0.1 + 0.01 * digit
                write_clip(folder / f"{digit}_{speaker}_{take}.wav", seconds, 8_000, seed=take + 3 * digit + s)
    return folder


def prepare(folder, single_digits, name="out", **changes):
    options = {"held_out": ["zora", "cleo"], "num_strings": NUM_STRINGS, "data_root": str(single_digits)} | changes
    prepare_digit_strings(str(folder / name), str(folder / f"{name}_digits"), str(folder), **options)
    return {split: read_manifest(folder / name / f"{split}.jsonl") for split in options["num_strings"]}


def hashes(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*.wav"))}


def test_strings_have_their_text_and_the_times_of_their_words(tmp_path, single_digits):
    splits = prepare(tmp_path, single_digits)
    assert {split: len(records) for split, records in splits.items()} == NUM_STRINGS
    for record in (record for records in splits.values() for record in records):
        words = record["text"].split()
        assert 3 <= len(words) <= 7
        assert set(words) <= set(WORDS)
        assert record["phonemes"] == " ".join(PRONUNCIATIONS[word] for word in words).split()
        begins, ends = np.array(record["word_times"]).T
        assert ends - begins == pytest.approx([0.1 + 0.01 * WORDS.index(word) for word in words], abs=1e-3)
        assert 0.05 <= begins[0] <= 0.25
        assert 0.05 <= record["duration"] - ends[-1] <= 0.2502
        assert (begins[1:] >= ends[:-1]).all()
        assert (begins[1:] - ends[:-1] <= 0.7).all()


def test_words_are_where_the_times_say(tmp_path, single_digits):
    record = prepare(tmp_path, single_digits)["train"][0]
    samples, rate = soundfile.read(tmp_path / "out" / record["audio_path"])
    assert (rate, len(samples) / rate) == (8_000, record["duration"])
    spoken = np.zeros(len(samples), dtype=bool)
    for begin, end in record["word_times"]:
        spoken[round(begin * rate) : round(end * rate)] = True
        piece = samples[round(begin * rate) : round(end * rate)]
        assert np.sqrt(np.square(piece).mean()) > 0.02
    pauses = samples[~spoken]
    assert 0 < np.sqrt(np.square(pauses).mean()) < 0.01  # a noise floor, no digital silence
    dataset = AudioDataset(tmp_path / "out" / "train.jsonl", 8_000, fields=["text", "speaker"])
    assert dataset[0]["waveform"].shape == (1, len(samples))


def test_who_is_held_out_is_heard_nowhere_else_and_takes_stay_in_their_split(tmp_path, single_digits):
    splits = prepare(tmp_path, single_digits)
    speakers = {split: {record["speaker"] for record in records} for split, records in splits.items()}
    assert speakers == {"train": {"ann", "ben"}, "val": {"ann", "ben"}, "test": {"ann", "ben"}, "unseen": {"cleo"}}
    other = prepare(tmp_path, single_digits, "other", held_out=["ann"])
    assert {record["speaker"] for record in other["unseen"]} == {"ann"}
    with pytest.raises(UserError, match="held_out: the corpus has none of zora, only ann, ben, cleo"):
        prepare(tmp_path, single_digits, "third", held_out=["zora"])
    assert not (tmp_path / "third").exists()


def test_the_same_seed_gives_the_same_bytes_and_more_strings_change_none(tmp_path, single_digits):
    splits = prepare(tmp_path, single_digits)
    again = prepare(tmp_path, single_digits, "again")
    assert again == splits
    assert hashes(tmp_path / "again") == hashes(tmp_path / "out")
    more = prepare(tmp_path, single_digits, "more", num_strings=NUM_STRINGS | {"train": 12})
    assert more["train"][:8] == splits["train"]
    assert hashes(tmp_path / "out").items() <= hashes(tmp_path / "more").items()
    other = prepare(tmp_path, single_digits, "other", seed=1)
    assert [record["text"] for record in other["train"]] != [record["text"] for record in splits["train"]]


def test_it_is_made_once(tmp_path, single_digits):
    prepare(tmp_path, single_digits)
    before = (tmp_path / "out" / "train.jsonl").stat().st_mtime_ns
    prepare(tmp_path, single_digits)
    assert (tmp_path / "out" / "train.jsonl").stat().st_mtime_ns == before
    about = json.loads((tmp_path / "out" / "corpus.json").read_text())
    assert (about["licence"], list(about["splits"])) == ("CC BY-SA 4.0", list(SPLITS))


def test_mistakes_are_told_before_anything_is_made(tmp_path, single_digits):
    with pytest.raises(UserError, match=r"num_strings.valid: there is no such split"):
        prepare(tmp_path, single_digits, num_strings={"valid": 3})
    assert list(tmp_path.iterdir()) == []


@needs_espeak
@pytest.mark.slow
def test_strings_of_digits_that_the_program_speaks_itself(tmp_path):
    speakers = {
        "train": {"anna": {"voice": "en-us+f1", "pitch": 60}},
        "val": {},
        "test": {"annie": {"voice": "en-us+Annie", "pitch": 60}},
    }
    takes = {"train": 1, "val": 0, "test": 1, "heard": 1, "heard_val": 1}
    out = tmp_path / "out"
    prepare_spoken_digit_strings(str(out), str(tmp_path / "digits"), speakers, takes, NUM_STRINGS)
    splits = {split: read_manifest(out / f"{split}.jsonl") for split in SPLITS}
    assert {split: {r["speaker"] for r in records} for split, records in splits.items()} == {
        "train": {"anna"},
        "val": {"anna"},
        "test": {"anna"},
        "unseen": {"annie"},
    }
    assert {record["sample_rate"] for record in splits["train"]} == {8_000}
    assert all(record["phonemes"] and "sil" not in record["phonemes"] for record in splits["unseen"])


@pytest.mark.skipif(not DIGITS.is_dir(), reason="needs the shared digits")
def test_strings_of_recorded_digits(tmp_path):
    splits = prepare(tmp_path, DIGITS, held_out=["yweweler", "theo"])
    assert {record["speaker"] for record in splits["unseen"]} == {"theo"}
    assert {record["speaker"] for record in splits["train"]} == {"george", "jackson", "lucas", "nicolas"}

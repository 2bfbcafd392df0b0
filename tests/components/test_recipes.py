import csv
import importlib.util
from pathlib import Path

import pytest

from components.data import AudioDataset, read_manifest
from components.data.recipes import (
    common,
    download,
    prepare_environmental_sounds,
    prepare_spoken_digits,
    prepare_spoken_words,
)
from tests.components.clips import write_clip
from utils.errors import UserError

DIGITS, SOUNDS = Path("../shared/data/spoken_digits"), Path("../shared/data/environmental_sounds")
CLASSES = ["dog_bark", "rain", "sea_waves", "baby_cry", "clock_tick", "person_sneeze", "helicopter", "chainsaw"]
CLASSES += ["rooster", "fire_crackling"]
SPEAKERS = ["george", "jackson", "lucas", "nicolas", "theo", "yweweler"]
needs_espeak = pytest.mark.skipif(importlib.util.find_spec("espeakng_loader") is None, reason="needs espeakng-loader")


def read_splits(folder):
    return {split: read_manifest(folder / f"{split}.jsonl") for split in ("train", "val", "test")}


@pytest.fixture
def no_internet(monkeypatch):
    def refuse(*arguments, **options):
        raise download.urllib.error.URLError("no route to host")

    monkeypatch.setattr(download.urllib.request, "urlopen", refuse)


@pytest.mark.parametrize("layout", ["recordings/{0}_{1}_{2}.wav", "audio/{1}/{0}_{1}_{2:0>2}.flac"])
def test_spoken_digits_in_either_layout(tmp_path, layout):
    for digit, speaker, take in [(0, "george", 0), (3, "george", 12), (7, "theo", 20), (7, "zora", 7)]:
        write_clip(tmp_path / "corpus" / layout.format(digit, speaker, take), 0.1, 8_000)
    out = tmp_path / "out"
    prepare_spoken_digits(str(out), str(tmp_path), SPEAKERS, str(tmp_path / "corpus"))
    splits = read_splits(out)
    assert {split: [r["labels"] for r in records] for split, records in splits.items()} == {
        "train": [{"word": "seven", "speaker": "theo"}, {"word": "seven"}],
        "val": [{"word": "three", "speaker": "george"}],
        "test": [{"word": "zero", "speaker": "george"}],
    }
    assert AudioDataset(out / "test.jsonl", 8_000)[0]["waveform"].shape == (1, 800)


def test_spoken_digits_elsewhere_are_refused(tmp_path):
    with pytest.raises(UserError, match="data_root=nowhere is not a folder"):
        prepare_spoken_digits(str(tmp_path / "out"), str(tmp_path), SPEAKERS, "nowhere")
    with pytest.raises(UserError, match="holds no files called DIGIT_SPEAKER_TAKE"):
        prepare_spoken_digits(str(tmp_path / "out"), str(tmp_path), SPEAKERS, str(tmp_path))
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_internet")
def test_without_internet_the_remedy_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot download https://github.com/.*give data_root=DIR"):
        prepare_spoken_digits(str(tmp_path / "out"), str(tmp_path / "downloads"), SPEAKERS)
    with pytest.raises(UserError, match="give data_root=DIR"):
        prepare_environmental_sounds(str(tmp_path / "out"), str(tmp_path / "downloads"), CLASSES, 1, 2)
    assert list((tmp_path / "downloads").iterdir()) == []


def esc50_tree(folder):
    rows = [("1-1-A-0.wav", "dog"), ("2-2-B-20.wav", "crying_baby"), ("3-3-A-10.wav", "rain"), ("3-4-A-5.wav", "cat")]
    (folder / "meta").mkdir(parents=True)
    with (folder / "meta" / "esc50.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["filename", "fold", "target", "category", "esc10", "src_file", "take"])
        writer.writerows([name, name[0], 0, category, True, 0, "A"] for name, category in rows)
    for name, _ in rows:
        write_clip(folder / "audio" / name, 0.1, 44_100)


def esc10_tree(folder):
    for name in ("001 - Dog bark/1-1-A.ogg", "004 - Baby cry/2-2-B.ogg", "002 - Rain/3-3-A.ogg"):
        write_clip(folder / name, 0.1, 44_100)


def class_folders(folder):
    for name in ("dog_bark/1-1-A.ogg", "baby_cry/2-2-B.ogg", "rain/3-3-A.ogg"):
        write_clip(folder / "audio" / name, 0.1, 44_100)


@pytest.mark.parametrize("make", [esc50_tree, esc10_tree, class_folders])
def test_environmental_sounds_in_any_layout(tmp_path, make):
    make(tmp_path / "corpus")
    out = tmp_path / "out"
    prepare_environmental_sounds(str(out), str(tmp_path), CLASSES, 1, 2, str(tmp_path / "corpus"))
    found = {split: [r["labels"]["sound"] for r in records] for split, records in read_splits(out).items()}
    assert found == {"train": ["rain"], "val": ["baby_cry"], "test": ["dog_bark"]}


def test_a_fold_may_be_both_test_and_validation(tmp_path):
    class_folders(tmp_path / "corpus")
    prepare_environmental_sounds(str(tmp_path / "out"), str(tmp_path), CLASSES, 1, 1, str(tmp_path / "corpus"))
    ids = {split: [r["id"] for r in records] for split, records in read_splits(tmp_path / "out").items()}
    assert ids == {"train": ["2-2-B", "3-3-A"], "val": ["1-1-A"], "test": ["1-1-A"]}


def test_a_recipe_runs_once_and_again_when_its_settings_change(tmp_path):
    class_folders(tmp_path / "corpus")
    arguments = [str(tmp_path / "out"), str(tmp_path), CLASSES]
    prepare_environmental_sounds(*arguments, 1, 2, str(tmp_path / "corpus"))
    before = (tmp_path / "out" / "test.jsonl").stat().st_mtime_ns
    prepare_environmental_sounds(*arguments, 1, 2, str(tmp_path / "corpus"))
    assert (tmp_path / "out" / "test.jsonl").stat().st_mtime_ns == before
    prepare_environmental_sounds(*arguments, 3, 2, str(tmp_path / "corpus"))
    assert read_manifest(tmp_path / "out" / "test.jsonl")[0]["fold"] == 3


def test_a_recipe_that_dies_leaves_nothing(tmp_path):
    def die():
        with common.whole_folder(tmp_path / "out", {}) as folder:
            (folder / "half").write_text("made")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        die()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not DIGITS.is_dir(), reason="needs the shared digits")
def test_shared_digits_have_the_documented_splits(tmp_path):
    prepare_spoken_digits(str(tmp_path / "out"), str(tmp_path), SPEAKERS, str(DIGITS))
    counts = {split: len(records) for split, records in read_splits(tmp_path / "out").items()}
    assert counts == {"train": 1750, "val": 250, "test": 250}


@pytest.mark.skipif(not SOUNDS.is_dir(), reason="needs the shared sounds")
def test_shared_sounds_are_split_by_fold(tmp_path):
    prepare_environmental_sounds(str(tmp_path / "out"), str(tmp_path), CLASSES, 1, 2, str(SOUNDS))
    splits = read_splits(tmp_path / "out")
    assert sum(map(len, splits.values())) == 318
    assert {split: {r["fold"] for r in records} for split, records in splits.items()} == {
        "train": {3, 4}, "val": {2}, "test": {1},
    }  # fmt: skip


VOICES = {
    "train": {"gina": {"voice": "en-gb-x-rp+f2", "pitch": 60}, "john": {"voice": "en-029+john", "pitch": 40}},
    "val": {"andrea": {"voice": "en-us+Andrea", "pitch": 55}},
    "test": {"sandro": {"voice": "en-us+sandro", "pitch": 40}},
}
TAKES = {"train": 2, "val": 1, "test": 1, "heard": 1}


def spoken(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@needs_espeak
def test_the_same_seed_speaks_the_same_bytes_in_any_company(tmp_path):
    prepare_spoken_words(str(tmp_path / "a"), ["seven", "yes"], VOICES, TAKES)
    prepare_spoken_words(str(tmp_path / "b"), ["seven", "yes"], VOICES, TAKES)
    prepare_spoken_words(str(tmp_path / "c"), ["no", "yes", "six", "seven"], VOICES, TAKES)
    assert spoken(tmp_path / "a") == spoken(tmp_path / "b")
    more = spoken(tmp_path / "c")
    audio = {path: content for path, content in spoken(tmp_path / "a").items() if path.suffix == ".flac"}
    assert len(audio) == 2 * (2 * 3 + 1 + 1)
    assert all(more[path] == content for path, content in audio.items())


@needs_espeak
def test_voices_of_the_validation_set_are_heard_nowhere_else(tmp_path):
    prepare_spoken_words(str(tmp_path / "out"), ["seven"], VOICES, TAKES)
    records = read_splits(tmp_path / "out")
    speakers = {split: {r["labels"]["speaker"] for r in found} for split, found in records.items()}
    assert speakers == {"train": {"gina", "john"}, "val": {"andrea"}, "test": {"gina", "john", "sandro"}}
    assert {r["id"] for r in records["train"]}.isdisjoint(r["id"] for r in records["test"])
    waveform = AudioDataset(tmp_path / "out" / "val.jsonl", 16_000)[0]["waveform"]
    assert 0.1 < waveform.shape[-1] / 16_000 < 2
    assert waveform.abs().max() > 0.05


@needs_espeak
@pytest.mark.parametrize("voice", ["en-us+nobody", "xx-klingon"])
def test_an_unknown_voice_is_named(tmp_path, voice):
    speakers = {"train": {"eve": {"voice": voice, "pitch": 50}}, "val": {}, "test": {}}
    with pytest.raises(UserError, match=rf"no voice '{voice.replace('+', '.')}' \(speaker eve\)"):
        prepare_spoken_words(str(tmp_path / "out"), ["seven"], speakers, TAKES)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_wheel_is_named_with_its_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "espeakng-loader'):
        prepare_spoken_words(str(tmp_path / "out"), ["seven"], VOICES, TAKES)

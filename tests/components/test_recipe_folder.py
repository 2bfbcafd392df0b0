import os
import subprocess
import sys
from pathlib import Path

import pytest

from components.data import read_manifest
from components.data.recipes import prepare_folder
from components.data.recipes.folder import SplitChoice, split_clips
from tests.components.clips import write_clip
from utils.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = Path("../shared/data/environmental_sounds")


def own_folder(folder, num_clips=10):
    """Clips of two classes in a folder of each, with what is said in them beside them."""
    for number in range(num_clips):
        for seed, label in enumerate(("low", "high")):
            path = write_clip(folder / label / f"{number}.wav", 0.2, seed=2 * seed)
            path.with_suffix(".txt").write_text(f"{label} number {number}\n")


def made(tmp_path, **settings):
    prepare_folder(str(tmp_path / "out"), str(tmp_path / "mine"), **settings)
    splits = [path for path in (tmp_path / "out").glob("*.jsonl") if path.stem != "left_out"]
    return {path.stem: read_manifest(path) for path in splits}


def test_sub_folders_are_labels_and_files_beside_are_texts(tmp_path):
    own_folder(tmp_path / "mine")
    found = made(tmp_path, label="sound")
    assert {split: len(records) for split, records in found.items()} == {"train": 18, "val": 2}
    for record in found["train"] + found["val"]:
        label, _, number = record["id"].partition("/")
        assert (record["labels"], record["text"]) == ({"sound": label}, f"{label} number {number}")


def test_a_clip_stays_in_its_split_when_others_come(tmp_path):
    own_folder(tmp_path / "mine", 40)
    before = {r["id"] for r in made(tmp_path, validation_split=0.25)["val"]}
    write_clip(tmp_path / "mine" / "low" / "new.wav", 0.2)
    after = {r["id"] for r in made(tmp_path, validation_split=0.25)["val"]}
    assert len(before) == len(after) == 20
    assert len(before & after) >= 19
    assert {r["id"] for r in made(tmp_path, validation_split=0.25, split_seed=1)["val"]} != after


def test_it_is_done_once_and_again_when_the_folder_or_a_setting_changes(tmp_path):
    own_folder(tmp_path / "mine", 3)

    def inode():
        return (tmp_path / "out" / "train.jsonl").stat().st_ino, (tmp_path / "out").stat().st_ino

    made(tmp_path)
    first = inode()
    made(tmp_path)
    assert inode() == first
    made(tmp_path, label="sound")
    second = inode()
    assert second != first
    (tmp_path / "mine" / "low" / "0.txt").write_text("something else")
    found = made(tmp_path, label="sound")
    assert inode() != second
    assert "something else" in {r["text"] for records in found.values() for r in records}


RECORDS = [{"id": f"clip{number:03}", "duration": 1.0} for number in range(100)]


def ids(records):
    return [record["id"] for record in records]


def test_settings_mean_what_the_recipes_they_come_from_mean():
    plain = split_clips(RECORDS, SplitChoice(validation_split=0.1))
    assert (len(plain["train"]), len(plain["val"])) == (90, 10)
    assert sorted(ids(plain["train"] + plain["val"])) == ids(RECORDS)

    limited = split_clips(RECORDS, SplitChoice(validation_split=0.1, limit_train_data=0.5, limit_val_data=0.2))
    less = split_clips(RECORDS, SplitChoice(validation_split=0.1, limit_train_data=0.1))
    assert (len(limited["train"]), len(limited["val"]), len(less["train"])) == (45, 2, 9)
    assert set(ids(less["train"])) < set(ids(limited["train"])) < set(ids(plain["train"]))

    both = split_clips(RECORDS, SplitChoice(validation_split=0.1, add_val_to_train=True))
    assert (ids(both["train"]), ids(both["val"])) == (ids(RECORDS), ids(plain["val"]))

    for times, copies in ((0, 1), (1, 1), (3, 3)):
        found = split_clips(RECORDS, SplitChoice(validation_split=0.1, multiply_train_data=times))
        assert len(set(ids(found["train"]))) == len(found["train"]) == 90 * copies
        assert len(found["val"]) == 10
    assert ids(found["train"])[90:92] == [f"{ids(plain['train'])[0]}#2", f"{ids(plain['train'])[1]}#2"]

    assert list(split_clips(RECORDS, SplitChoice(validation_split=0.0))) == ["train"]

    tested = split_clips(RECORDS, SplitChoice(validation_split=0.1, test_split=0.2, add_val_to_train=True))
    assert ids(tested["val"]) == ids(plain["val"])
    assert (len(tested["train"]), len(tested["test"])) == (80, 20)
    assert sorted(ids(tested["train"] + tested["test"])) == ids(RECORDS)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"validation_split": 1.0}, "validation_split=1.0: a share of the clips"),
        ({"test_split": -0.1}, "test_split=-0.1: a share of the clips"),
        ({"test_split": 0.5, "validation_split": 0.5}, "=0.5 and test_split=0.5: none of 4 clips is left"),
        ({"test_split": 0.5, "test_dir": "mine"}, "test_dir=.*mine is the test set: leave test_split=0.5 out"),
        ({"limit_train_data": 0.0}, "limit_train_data=0.0: a share of the clips, more than 0"),
        ({"limit_val_data": 30}, "limit_val_data=30: a share of the clips"),
        ({"multiply_train_data": -1}, "multiply_train_data=-1: a number of times"),
        ({"language": "ru"}, "language=ru: .* has no such sub-folder"),
        ({"test_dir": "nowhere"}, "test_dir=nowhere is not a folder"),
        ({"allowed_extensions": [".mp3"]}, r"holds no .mp3 but .txt, .wav: see allowed_extensions"),
        ({"table": "all.csv"}, "cannot read .*all.csv"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(tmp_path, settings, sentence):
    own_folder(tmp_path / "mine", 2)
    with pytest.raises(UserError, match=sentence):
        made(tmp_path, **settings)
    assert not (tmp_path / "out").exists()


def test_one_clip_is_not_enough_for_two_splits(tmp_path):
    write_clip(tmp_path / "mine" / "a.wav", 0.1)
    with pytest.raises(UserError, match=r"validation_split=0.1: none of 1 clips is left"):
        made(tmp_path)
    with pytest.raises(UserError, match="train_val_dir: name a folder"):
        prepare_folder(str(tmp_path / "out"), None)


def test_a_language_is_a_sub_folder_and_the_test_set_a_folder_of_its_own(tmp_path):
    for name in ("mine/ru/a.wav", "mine/ru/b.wav", "mine/de/c.wav", "held/ru/d.wav"):
        write_clip(tmp_path / name, 0.1)
    found = made(tmp_path, language="ru", test_dir=str(tmp_path / "held"), validation_split=0.5)
    assert [r["id"] for r in found["test"]] == ["d"]
    assert {r["id"] for r in found["train"] + found["val"]} == {"a", "b"}
    assert {r["language"] for records in found.values() for r in records} == {"ru"}


@pytest.mark.parametrize(("name", "between"), [("all.csv", ","), ("all.tsv", "\t")])
def test_a_table_may_say_more_of_the_files(tmp_path, name, between):
    for clip in ("a.wav", "in/b.wav", "in/b.flac"):
        write_clip(tmp_path / "mine" / clip, 0.1)
    rows = [("file_name", "sentence", "speaker", "id"), ("a", "hello", "eve", "7"), ("in/b.wav", "good bye", "", "8")]
    (tmp_path / "mine" / name).write_text("".join(between.join(row) + "\n" for row in rows))
    found = made(tmp_path, table=name, allowed_extensions=[".wav", ".FLAC"], validation_split=0.0)
    known = {r["id"]: (r.get("text"), r.get("speaker")) for r in found["train"]}
    assert known == {"a": ("hello", "eve"), "in/b.wav": ("good bye", None), "in/b.flac": (None, None)}


def test_a_file_that_is_no_audio_is_left_out_and_listed(tmp_path):
    own_folder(tmp_path / "mine", 2)
    (tmp_path / "mine" / "low" / "note.wav").write_text("not a sound")
    found = made(tmp_path)
    assert {len(found["train"]), len(found["val"])} == {3, 1}
    assert '"low/note"' in (tmp_path / "out" / "left_out.jsonl").read_text()


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared environmental sounds")
def test_recorded_sounds_in_folders_of_their_classes(tmp_path):
    prepare_folder(str(tmp_path), str(SHARED / "audio"), allowed_extensions=[".ogg"], label="sound")
    train, val = (read_manifest(tmp_path / f"{split}.jsonl") for split in ("train", "val"))
    assert (len(train), len(val)) == (286, 32)
    assert len({r["labels"]["sound"] for r in train}) == 10


CONFIG = """
defaults:
  - data_dict: custom_folder
  - model: tagger
  - loss_fn: cross_entropy
  - optimizer: adamw
  - lr_scheduler: cosine
  - trainer: tagging
  - callbacks: tagging
  - tracker: default
  - _self_
epochs: 2
sample_rate: 16000
labels: {sound: [low, high]}
recipes:
  mine: ${data_dict.custom_folder.recipe}
data_dict:
  custom_folder:
    label: sound
    validation_split: 0.2
    limit_train_data: 0.5
    multiply_train_data: 4
    add_val_to_train: true
model:
  backbone: {channels: [8, 16]}
  head: {hidden_dim: 16}
predictor: {_target_: tasks.tagging.TaggingPredictor, labels: "${labels}", main_target: sound, top_k: 2}
trainer: {log_every_n_steps: 1}
callbacks: {samples: null}
train_dataloader:
  _target_: torch.utils.data.DataLoader
  batch_size: 8
  shuffle: true
  collate_fn: {_target_: components.data.PadCollate}
  dataset:
    _target_: components.data.AudioDataset
    manifest: ${data_dict.custom_folder.train.manifest}
    sample_rate: ${sample_rate}
    labels: ${labels}
    augment: {}
val_dataloader:
  _target_: torch.utils.data.DataLoader
  batch_size: 8
  collate_fn: {_target_: components.data.PadCollate}
  dataset: ${data_dict.custom_folder.val}
"""


@pytest.mark.slow
def test_a_folder_is_trained_on_by_config(tmp_path):
    own_folder(tmp_path / "mine", 20)
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "conf.yaml").write_text(CONFIG)
    command = [sys.executable, "train.py", "--config-path", str(tmp_path / "conf"), "--config-name", "conf"]
    command += [f"data_root={tmp_path / 'mine'}", f"cache_dir={tmp_path / 'cache'}", f"exp_dir={tmp_path / 'exp'}"]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (made_here,) = (tmp_path / "cache").glob("custom_folder-*")
    # 40 clips: 8 to validate, half of the other 32 to train on and those 8, four times each.
    assert len(read_manifest(made_here / "val.jsonl")) == 8
    assert len(read_manifest(made_here / "train.jsonl")) == (16 + 8) * 4
    steps = [line for line in (tmp_path / "exp" / "metrics.jsonl").read_text().splitlines() if "train/loss" in line]
    assert len(steps) == 2 * (16 + 8) * 4 // 8

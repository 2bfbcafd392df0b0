"""Environmental sounds: ESC-50, and ESC-10, the ten-class part of it.

What: 2 000 clips of fifty classes, 400 of ten, in five folds, nominally 5 s; clips of one source share a fold.
Licence: ESC-10 is CC BY 3.0 (K. J. Piczak, doi:10.1145/2733373.2806390); the ESC-50 repository is CC BY-NC 3.0.
Source: github.com/karolpiczak/ESC-50.
Splits: one fold is `test`, one `val`, all others `train`.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from components.data.manifest import Record
from components.data.recipes.common import (
    Corpus,
    audio_record,
    is_prepared,
    require_folder,
    whole_folder,
    write_corpus,
)
from components.data.recipes.download import download_archive
from utils.errors import UserError

COMMIT = "33c8ce9eb2cf0b1c2f8bcf322eb349b6be34dbb6"
URL = f"https://github.com/karolpiczak/ESC-50/archive/{COMMIT}.tar.gz"
CORPUS = Corpus("ESC-50", "CC BY-NC 3.0; its ESC-10 part CC BY 3.0", "https://github.com/karolpiczak/ESC-50")
_CLIPS_PER_CLASS = 40
_NAME = re.compile(r"(?P<fold>[1-5])-\d+-[A-Z](-\d+)?\.(ogg|wav|flac)")
# The three layouts name the same classes differently.
_ALIASES = {
    "dog": "dog_bark",
    "crying_baby": "baby_cry",
    "sneezing": "person_sneeze",
    "crackling_fire": "fire_crackling",
}


def prepare_environmental_sounds(
    output_dir: str,
    download_dir: str,
    classes: Sequence[str],
    test_fold: int,
    val_fold: int,
    data_root: str | None = None,
) -> None:
    """Write `{train,val,test}.jsonl` into `output_dir`; does nothing if they are there.

    Args:
        download_dir: where the archive is unpacked, if it is needed.
        classes: class names of the target `sound`, as ESC-10 or ESC-50 spells them; clips of others are left aside.
        test_fold, val_fold: 1 to 5; the same number twice makes one fold both, and trains on all others.
        data_root: a copy of the corpus: the tree of ESC-50 (`meta/esc50.csv`, `audio/`), that of ESC-10
            (`001 - Dog bark/1-30226-A.ogg`), or folders named after the classes. It is only read. None: downloaded.

    Raises:
        UserError: `data_root` holds no such clips, a split would be empty, or the download is impossible.
    """
    folder = Path(output_dir)
    settings = {"data_root": data_root, "classes": list(classes), "folds": [test_fold, val_fold], "version": 2}
    if is_prepared(folder, settings):
        return
    corpus = require_folder(data_root) if data_root else download_archive(URL, Path(download_dir), "esc50")
    named = {name: spelling for spelling in classes for name in (spelling, _class_name(spelling))}
    clips = [(path, named[label]) for path, label in _labelled_clips(corpus) if label in named]
    if not clips:
        raise UserError(f"{corpus} has neither meta/esc50.csv nor folders of clips named after the classes")
    if not data_root and len(clips) != _CLIPS_PER_CLASS * len(classes):
        expected = _CLIPS_PER_CLASS * len(classes)
        raise UserError(f"{corpus} holds {len(clips)} of {expected} clips: remove it and run again")
    splits: dict[str, list[Record]] = {"train": [], "val": [], "test": []}
    for path, label in clips:
        fold = int(path.name[0])
        roles = [role for role, role_fold in (("test", test_fold), ("val", val_fold)) if fold == role_fold] or ["train"]
        for role in roles:
            splits[role].append(audio_record(path, path.stem, labels={"sound": label}, fold=fold, split=role))
    with whole_folder(folder, settings) as temporary:
        write_corpus(temporary, CORPUS, splits, overlapping=test_fold == val_fold)


def _labelled_clips(corpus: Path) -> Iterator[tuple[Path, str]]:
    table = corpus / "meta" / "esc50.csv"
    if table.is_file():
        with table.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                yield corpus / "audio" / row["filename"], _class_name(row["category"])
        return
    for path in sorted(corpus.rglob("*")):
        if _NAME.fullmatch(path.name):
            yield path, _class_name(path.parent.name)


def _class_name(name: str) -> str:
    """`001 - Dog bark`, `dog_bark` and ESC-50's `dog` are all `dog_bark`."""
    plain = name.rpartition(" - ")[2].strip().lower().replace(" ", "_")
    return _ALIASES.get(plain, plain)

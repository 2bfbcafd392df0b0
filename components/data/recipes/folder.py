"""A folder of one's own recordings, split into training, validation and test.

What: every audio file below a folder. The folder right below it that a file lies in is its label, `<file>.txt` beside
it its text, and a table may say more.
Licence: yours.
Splits: by a hash of the file's name, so that the same file stays where it is from run to run.
The settings have the names of `CustomAudioDataset` as phoneme-recognition recipes have them.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from components.data.manifest import AUDIO_SUFFIXES, Record
from components.data.recipes.common import (
    Clip,
    Corpus,
    audio_records,
    is_prepared,
    read_table,
    whole_folder,
    write_corpus,
)
from components.data.splits import share_of
from utils.errors import UserError

_FILE_COLUMNS = ("file_name", "audio_path", "path", "file", "id")
_OURS = ("id", "audio_path", "duration", "sample_rate", "offset", "channel")
_TEXT_COLUMNS = ("text", "sentence", "transcript")


@dataclass(frozen=True, slots=True)
class SplitChoice:
    """How clips become training, validation and test; see `prepare_folder`.

    Raises:
        UserError: a share is none.
    """

    validation_split: float = 0.1
    limit_train_data: float | None = None
    limit_val_data: float | None = None
    multiply_train_data: int = 0
    add_val_to_train: bool = False
    split_seed: int = 0
    test_split: float = 0.0

    def __post_init__(self) -> None:
        for name in ("validation_split", "test_split"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: a share of the clips, from 0 to less than 1")
        for name in ("limit_train_data", "limit_val_data"):
            share = getattr(self, name)
            if share is not None and not 0 < share <= 1:
                raise UserError(f"{name}={share}: a share of the clips, more than 0 and up to 1")
        if self.multiply_train_data < 0:
            raise UserError(f"multiply_train_data={self.multiply_train_data}: a number of times, 0 or more")


def prepare_folder(
    output_dir: str,
    train_val_dir: str | None,
    language: str | None = None,
    test_dir: str | None = None,
    test_split: float = 0.0,
    allowed_extensions: Sequence[str] | None = None,
    validation_split: float = 0.1,
    limit_train_data: float | None = None,
    limit_val_data: float | None = None,
    multiply_train_data: int = 0,
    add_val_to_train: bool = False,
    label: str | None = None,
    table: str | None = None,
    split_seed: int = 0,
) -> None:
    """Write `train.jsonl`, `val.jsonl` and, with a `test_dir` or `test_split`, `test.jsonl` into `output_dir`.

    Does nothing if they are there, the settings are the same, and no file of the folders was added, removed or changed.

    Args:
        train_val_dir: searched deeply; only read.
        language: a sub-folder of `train_val_dir` (and of `test_dir`) to take alone; its name becomes `language`.
        test_dir: a folder whose files are the test set.
        test_split: share of the files that is the test set where no folder is, at least one; 0: there is none.
        allowed_extensions: of audio files, in any case; None: all that can be read.
        validation_split: share of the files that is `val`, at least one; 0: there is no `val.jsonl`.
        limit_train_data, limit_val_data: share of either that is used, (0, 1]; a smaller one is part of a larger one.
        multiply_train_data: how many times each training clip is in `train.jsonl`; 0 and 1 are once.
        add_val_to_train: train on the validation clips too.
        label: target of the label that the sub-folder is, e.g. `sound`; None: there are no labels.
        table: a CSV or TSV in each of the folders: a column `file_name` (or `path`, ...) names the file, with its
            sub-folders, with or without suffix; the others become fields, `sentence` and `transcript` are `text`.
        split_seed: another one is another split.

    Raises:
        UserError: a folder is missing or has no such files, a share is impossible, the test set is given twice, or the
            table has no such column.
    """
    folder, allowed_extensions = Path(output_dir), allowed_extensions or sorted(AUDIO_SUFFIXES)
    shares = (validation_split, limit_train_data, limit_val_data)
    choice = SplitChoice(*shares, multiply_train_data, add_val_to_train, split_seed, test_split)
    if test_dir is not None and test_split > 0:
        raise UserError(f"test_dir={test_dir} is the test set: leave test_split={test_split} out")
    sources = {"train": _source("train_val_dir", train_val_dir, language)}
    if test_dir is not None:
        sources["test"] = _source("test_dir", test_dir, language)
    settings = {"folders": {split: str(path) for split, path in sources.items()}, "choice": asdict(choice)}
    settings |= {"extensions": list(allowed_extensions), "label": label, "table": table, "version": 2}
    settings["fingerprint"] = {split: _fingerprint(path) for split, path in sources.items()}
    if is_prepared(folder, settings):
        return
    left_out: list[Record] = []
    found = {
        split: audio_records(_clips(path, allowed_extensions, label, table, language), left_out)
        for split, path in sources.items()
    }
    splits = split_clips(found["train"], choice)
    if test_dir is not None:
        splits["test"] = found["test"]
    with whole_folder(folder, settings) as temporary:
        about = Corpus(sources["train"].name, "your own", str(sources["train"]))
        write_corpus(temporary, about, splits, left_out, overlapping=add_val_to_train)


def split_clips(records: Sequence[Record], choice: SplitChoice) -> dict[str, list[Record]]:
    """`train` and, unless its share is 0, `val` and `test` of `records`.

    Training clips are limited first, then those of validation are added, then all are multiplied: the second time a
    clip's id ends in `#2`.

    Raises:
        UserError: nothing is left to train on.
    """
    order = sorted(records, key=lambda record: share_of(record["id"], choice.split_seed))
    shares = {"validation_split": choice.validation_split, "test_split": choice.test_split}
    num_val, num_test = (max(1, round(share * len(order))) if share > 0 else 0 for share in shares.values())
    if num_val + num_test >= len(order):
        given = " and ".join(f"{name}={share}" for name, share in shares.items() if share > 0)
        raise UserError(f"{given}: none of {len(order)} clips is left to train on")
    val = _first(order[:num_val], choice.limit_val_data)
    test = sorted(order[num_val : num_val + num_test], key=lambda record: record["id"])
    train = _first(order[num_val + num_test :], choice.limit_train_data)
    train = train + val if choice.add_val_to_train else train
    train, val = (sorted(part, key=lambda record: record["id"]) for part in (train, val))
    rounds = range(2, choice.multiply_train_data + 1)
    copies = [{**record, "id": f"{record['id']}#{number}"} for number in rounds for record in train]
    return {"train": train + copies} | ({"val": val} if val else {}) | ({"test": test} if test else {})


def _first(records: list[Record], share: float | None) -> list[Record]:
    return records if share is None or not records else records[: max(1, round(share * len(records)))]


def _source(name: str, folder: str | None, language: str | None) -> Path:
    if folder is None:
        raise UserError(f"{name}: name a folder of recordings, data_root=FOLDER at the prompt")
    path = Path(folder).expanduser().absolute()
    if not path.is_dir():
        raise UserError(f"{name}={folder} is not a folder")
    if language is not None and not (path / language).is_dir():
        raise UserError(f"language={language}: {path} has no such sub-folder")
    return path if language is None else path / language


def _fingerprint(folder: Path) -> str:
    """Changes with every file that is added, removed, renamed or written to."""
    files = [(path.relative_to(folder).as_posix(), path.stat()) for path in sorted(folder.rglob("*")) if path.is_file()]
    listing = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in files]
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()


def _clips(
    folder: Path, extensions: Sequence[str], label: str | None, table: str | None, language: str | None
) -> list[Clip]:
    wanted = {extension.lower() for extension in extensions}
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith(".")]
    files = [path for path in paths if path.suffix.lower() in wanted]
    if not files:
        others = ", ".join(sorted({path.suffix for path in paths if path.suffix})) or "no files"
        raise UserError(f"{folder} holds no {', '.join(extensions)} but {others}: see allowed_extensions")
    known = _rows(folder, table) if table is not None else {}
    names = [path.relative_to(folder) for path in files]
    num_alike = Counter(name.with_suffix("") for name in names)
    clips = []
    for path, relative in zip(files, names):
        name, stem = relative.as_posix(), relative.with_suffix("").as_posix()
        fields: dict[str, Any] = {} if language is None else {"language": language}
        text = path.with_suffix(".txt")
        if text.is_file():
            fields["text"] = text.read_text(encoding="utf-8-sig").strip()
        if label is not None and "/" in name:
            fields["labels"] = {label: name.partition("/")[0]}
        # Two files that differ in their suffix alone keep it.
        identifier = stem if num_alike[relative.with_suffix("")] == 1 else name
        clips.append(Clip(path, identifier, fields | known.get(name, known.get(stem, {}))))
    return clips


def _rows(folder: Path, table: str) -> dict[str, Record]:
    path = folder / table
    known = {}
    for row in read_table(path, delimiter="\t" if path.suffix == ".tsv" else ","):
        column = next((name for name in _FILE_COLUMNS if name in row), None)
        if column is None:
            raise UserError(f"{path}: no column names the file: {', '.join(_FILE_COLUMNS)}")
        fields = {("text" if key in _TEXT_COLUMNS else key): value for key, value in row.items() if key and value}
        known[row[column].strip()] = {key: value for key, value in fields.items() if key not in (column, *_OURS)}
    return known

"""Spoken digits: the Free Spoken Digit Dataset (FSDD).

What: 3 000 recordings of the ten digits by six speakers, 50 takes each, 8 kHz mono, trimmed.
Licence: CC BY-SA 4.0 (Zohar Jackson and contributors).
Source: github.com/Jakobovski/free-spoken-digit-dataset.
Splits: takes 0-4 are `test`, as its authors have it; takes 10-14 `val`; all others `train`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
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

COMMIT = "26eb9aaf76e81b692f806f9140c2d2777410d7a1"
URL = f"https://github.com/Jakobovski/free-spoken-digit-dataset/archive/{COMMIT}.tar.gz"
CORPUS = Corpus("Free Spoken Digit Dataset", "CC BY-SA 4.0", "https://github.com/Jakobovski/free-spoken-digit-dataset")
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_NUM_RECORDINGS = 3_000
_NAME = re.compile(r"(?P<digit>\d)_(?P<speaker>[a-z]+)_(?P<take>\d+)\.(wav|flac)", re.IGNORECASE)
_TEST_TAKES, _VAL_TAKES = range(5), range(10, 15)


def prepare_spoken_digits(
    output_dir: str, download_dir: str, speakers: Sequence[str], data_root: str | None = None
) -> None:
    """Write `{train,val,test}.jsonl` into `output_dir`; does nothing if they are there.

    Args:
        download_dir: where the archive is unpacked, if it is needed.
        speakers: class names of the target `speaker`; others are taken too, without that label.
        data_root: a copy of the corpus, in any layout whose files are called `{digit}_{speaker}_{take}.wav` or `.flac`;
            it is only read. None downloads the corpus.

    Raises:
        UserError: `data_root` holds no such files, or the download is impossible or incomplete.
    """
    folder = Path(output_dir)
    settings = {"data_root": data_root, "speakers": list(speakers), "version": 2}
    if is_prepared(folder, settings):
        return
    corpus = require_folder(data_root) if data_root else download_archive(URL, Path(download_dir), "fsdd")
    files = sorted(path for path in corpus.rglob("*") if _NAME.fullmatch(path.name))
    if not files:
        raise UserError(f"{corpus} holds no files called DIGIT_SPEAKER_TAKE.wav or .flac, such as 7_jackson_32.wav")
    if not data_root and len(files) != _NUM_RECORDINGS:
        raise UserError(f"{corpus} holds {len(files)} of {_NUM_RECORDINGS} recordings: remove it and run again")
    splits: dict[str, list[Record]] = {"train": [], "val": [], "test": []}
    for path in files:
        record = _record(path, set(speakers))
        splits[record["split"]].append(record)
    with whole_folder(folder, settings) as temporary:
        write_corpus(temporary, CORPUS, splits)


def _record(path: Path, speakers: set[str]) -> Record:
    match = _NAME.fullmatch(path.name)
    assert match is not None
    word, speaker, take = WORDS[int(match["digit"])], match["speaker"].lower(), int(match["take"])
    split = "test" if take in _TEST_TAKES else "val" if take in _VAL_TAKES else "train"
    labels = {"word": word} | ({"speaker": speaker} if speaker in speakers else {})
    return audio_record(path, path.stem, text=word, labels=labels, speaker=speaker, split=split)

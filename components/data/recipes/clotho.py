"""Clotho 2.1: sounds of Freesound, each described by five people.

What: 5 929 clips of 15 to 30 s at 44.1 kHz with five captions of 8 to 20 words each; keywords, the uploader's licence.
Licence: captions: Tampere University's, non-commercial with attribution (K. Drossos, S. Lipping and T. Virtanen, ICASSP
2020); every sound has the Creative Commons licence that its uploader gave, which is `licence` in its record.
Source: doi:10.5281/zenodo.4783391.
Splits: `development` is train (3 839 clips), `validation` val (1 045), `evaluation` test (1 045).
"""

from __future__ import annotations

from pathlib import Path

from components.data.manifest import Record
from components.data.recipes.common import (
    Clip,
    Corpus,
    anywhere,
    audio_records,
    captioned,
    is_prepared,
    read_table,
    require_file,
    whole_folder,
    write_corpus,
)
from components.data.recipes.download import RemoteFile, given_or_downloaded
from utils.errors import UserError

CORPUS = Corpus(
    "Clotho 2.1",
    "captions: Tampere University, non-commercial with attribution; audio: see `licence` of each clip",
    "https://zenodo.org/records/4783391",
)
_BASE = "https://zenodo.org/records/4783391/files"
_MD5 = {
    "clotho_audio_development.7z": "c8b05bc7acdb13895bb3c6a29608667e",
    "clotho_audio_validation.7z": "7dba730be08bada48bd15dc4e668df59",
    "clotho_audio_evaluation.7z": "4569624ccadf96223f19cb59fe4f849f",
    "clotho_captions_development.csv": "d4090b39ce9f2491908eebf4d5b09bae",
    "clotho_captions_validation.csv": "5879e023032b22a2c930aaa0528bead4",
    "clotho_captions_evaluation.csv": "1b16b9e57cf7bdb7f13a13802aeb57e2",
    "clotho_metadata_development.csv": "170d20935ecfdf161ce1bb154118cda5",
    "clotho_metadata_validation.csv": "2e010427c56b1ce6008b0f03f41048ce",
    "clotho_metadata_evaluation.csv": "13946f054d4e1bf48079813aac61bf77",
}
_PARTS = {"train": "development", "val": "validation", "test": "evaluation"}
_CAPTIONS = tuple(f"caption_{number}" for number in range(1, 6))
_LAYOUT = (
    "a folder with clotho_captions_{development,validation,evaluation}.csv and the folders of audio of these names"
)


def prepare_clotho(
    output_dir: str, download_dir: str | None = None, data_root: str | None = None, each_caption: bool = True
) -> None:
    """Write `{train,val,test}.jsonl` into `output_dir`; does nothing if they are there.

    A record has `caption`, `captions` (all five), and `keywords` and `licence` where the metadata are there.

    Args:
        download_dir: where the archives (7 GB) are fetched and unpacked, if they are needed; that takes 7-Zip.
        data_root: a copy of the corpus: the three caption tables, and the folders `development`, `validation` and
            `evaluation` (or `clotho_audio_<part>`), both somewhere below it. It is only read.
        each_caption: one training record for each caption.

    Raises:
        UserError: a table or a folder is missing, a split has no clip, or the download is impossible.
    """
    folder = Path(output_dir)
    settings = {"data_root": data_root, "each_caption": each_caption, "version": 1}
    if is_prepared(folder, settings):
        return
    files = [RemoteFile(f"{_BASE}/{name}", md5) for name, md5 in _MD5.items()]
    wanted = f"Clotho: give data_root=DIR, {_LAYOUT}, or let it be downloaded"
    corpus = given_or_downloaded(data_root, download_dir, files, "clotho-2.1", wanted)
    splits: dict[str, list[Record]] = {}
    left_out: list[Record] = []
    for split, part in _PARTS.items():
        splits[split] = audio_records(_clips(corpus, part, each_caption and split == "train"), left_out)
    with whole_folder(folder, settings) as temporary:
        write_corpus(temporary, CORPUS, splits, left_out)


def _clips(corpus: Path, part: str, each: bool) -> list[Clip]:
    table = require_file(corpus, *anywhere(f"clotho_captions_{part}.csv"), layout=_LAYOUT)
    names = anywhere(part) + anywhere(f"clotho_audio_{part}")
    folders = [path for name in names for path in sorted(corpus.glob(name)) if path.is_dir()]
    if not folders:
        raise UserError(f"{corpus} holds no folder {part}: data_root must be {_LAYOUT}")
    known = _metadata(corpus, part)
    clips = []
    for row in read_table(table, ("file_name", *_CAPTIONS)):
        name = row["file_name"].strip()
        path = next((path for inner in folders if (path := inner / name).is_file()), None)
        captions = [row[column].strip() for column in _CAPTIONS if row[column].strip()]
        clip = Clip(path, f"{part}/{Path(name).stem}", known.get(name, {}))
        clips += captioned(clip, captions, each)
    return clips


def _metadata(corpus: Path, part: str) -> dict[str, Record]:
    """File name -> keywords and licence; empty where the table is not there."""
    for name in anywhere(f"clotho_metadata_{part}.csv"):
        for table in sorted(corpus.glob(name)):
            return {
                row["file_name"].strip(): {
                    "keywords": [word.strip() for word in row["keywords"].split(";") if word.strip()],
                    "licence": row["license"].strip(),
                }
                for row in read_table(table, ("file_name", "keywords", "license"))
            }
    return {}

"""FSD50K: 51 197 sounds of Freesound with 200 classes of the AudioSet ontology, several a clip.

What: 108 hours at 44.1 kHz mono, 0.3 to 30 s a clip.
Licence: the collection CC BY 4.0 (E. Fonseca et al., IEEE/ACM TASLP 2022); every sound has the Creative Commons licence
that its uploader gave (CC0, CC BY, CC BY-NC, CC Sampling+), which is `licence` in its record where FSD50K.metadata is
there.
Source: doi:10.5281/zenodo.4060432.
Splits: those of the corpus: `train` and `val` of the development set, `test` is the evaluation set.
"""

from __future__ import annotations

import json
from pathlib import Path

from components.data.manifest import Record
from components.data.recipes.common import (
    Clip,
    Corpus,
    audio_records,
    is_prepared,
    read_table,
    require_file,
    whole_folder,
    write_corpus,
)
from components.data.recipes.download import RemoteFile, given_or_downloaded
from utils.errors import UserError

CORPUS = Corpus("FSD50K", "CC BY 4.0; audio: see `licence` of each clip", "https://zenodo.org/records/4060432")
_BASE = "https://zenodo.org/records/4060432/files"
_MD5 = {
    "FSD50K.dev_audio.z01": "faa7cf4cc076fc34a44a479a5ed862a3",
    "FSD50K.dev_audio.z02": "8f9b66153e68571164fb1315d00bc7bc",
    "FSD50K.dev_audio.z03": "1196ef47d267a993d30fa98af54b7159",
    "FSD50K.dev_audio.z04": "d088ac4e11ba53daf9f7574c11cccac9",
    "FSD50K.dev_audio.z05": "81356521aa159accd3c35de22da28c7f",
    "FSD50K.dev_audio.zip": "c480d119b8f7a7e32fdb58f3ea4d6c5a",
    "FSD50K.eval_audio.z01": "3090670eaeecc013ca1ff84fe4442aeb",
    "FSD50K.eval_audio.zip": "6fa47636c3a3ad5c7dfeba99f2637982",
    "FSD50K.ground_truth.zip": "ca27382c195e37d2269c4c866dd73485",
    "FSD50K.metadata.zip": "b9ea0c829a411c1d42adb9da539ed237",
}
_LAYOUT = "a folder with FSD50K.ground_truth/{dev,eval}.csv, FSD50K.dev_audio/ and FSD50K.eval_audio/"


def prepare_fsd50k(output_dir: str, download_dir: str | None = None, data_root: str | None = None) -> None:
    """Write `{train,val,test}.jsonl` into `output_dir`; does nothing if they are there.

    A record has `tags` (the classes by name, e.g. `Acoustic_guitar`), `mids` (the same by AudioSet's ids) and, where
    the metadata are there, `title` and `licence`. `classes.txt` lists all classes in the order of `vocabulary.csv`.

    Args:
        download_dir: where the archives (25 GB) are fetched and unpacked, if they are needed; that takes 7-Zip.
        data_root: a copy of the corpus, `FSD50K.ground_truth` and its sisters; it is only read.

    Raises:
        UserError: a table or a folder is missing, a split has no clip, or the download is impossible.
    """
    folder = Path(output_dir)
    settings = {"data_root": data_root, "version": 1}
    if is_prepared(folder, settings):
        return
    files = [RemoteFile(f"{_BASE}/{name}", md5) for name, md5 in _MD5.items()]
    wanted = f"FSD50K: give data_root=DIR, {_LAYOUT}, or let it be downloaded"
    corpus = given_or_downloaded(data_root, download_dir, files, "fsd50k", wanted)
    left_out: list[Record] = []
    splits = {split: audio_records(clips, left_out) for split, clips in _clips(corpus).items()}
    vocabulary = require_file(corpus, "FSD50K.ground_truth/vocabulary.csv", layout=_LAYOUT)
    with whole_folder(folder, settings) as temporary:
        write_corpus(temporary, CORPUS, splits, left_out)
        classes = [line.split(",")[1] for line in vocabulary.read_text(encoding="utf-8").splitlines() if line.strip()]
        (temporary / "classes.txt").write_text("".join(f"{name}\n" for name in classes), encoding="utf-8")


def _clips(corpus: Path) -> dict[str, list[Clip]]:
    splits: dict[str, list[Clip]] = {"train": [], "val": [], "test": []}
    for part in ("dev", "eval"):
        table = require_file(corpus, f"FSD50K.ground_truth/{part}.csv", layout=_LAYOUT)
        audio = corpus / f"FSD50K.{part}_audio"
        if not audio.is_dir():
            raise UserError(f"{corpus} holds no folder {audio.name}: data_root must be {_LAYOUT}")
        known = _metadata(corpus, part)
        columns = ("fname", "labels", "mids") + (("split",) if part == "dev" else ())
        for row in read_table(table, columns):
            split = row["split"].strip() if part == "dev" else "test"
            if split not in splits:
                raise UserError(
                    f"{table}: the clip {row['fname']} has the split {split!r}, which is neither train nor val"
                )
            labels = {"tags": row["labels"].split(","), "mids": row["mids"].split(",")}
            path = audio / f"{row['fname']}.wav"
            splits[split].append(Clip(path, row["fname"], labels | known.get(row["fname"], {})))
    return splits


def _metadata(corpus: Path, part: str) -> dict[str, Record]:
    path = corpus / "FSD50K.metadata" / f"{part}_clips_info_FSD50K.json"
    if not path.is_file():
        return {}
    clips = json.loads(path.read_text(encoding="utf-8"))
    return {name: {"title": clip.get("title"), "licence": clip.get("license")} for name, clip in clips.items()}

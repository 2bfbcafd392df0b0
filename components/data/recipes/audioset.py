"""AudioSet: ten-second clips of YouTube videos with 527 classes, several a clip.

What: 22 160 clips in the balanced training set, 2 041 789 in the unbalanced one, 20 371 to evaluate on.
Licence: the labels are CC BY 4.0, the ontology CC BY-SA 4.0 (J. F. Gemmeke et al., ICASSP 2017); the sounds belong to
those who uploaded the videos, and are handed out by nobody: `data_root` is what you have of them.
Source: research.google.com/audioset.
Splits: `train` of the sets that are named, a share of it `val` by a hash of the video, the evaluation set is `test`.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from components.data.manifest import Record
from components.data.recipes.common import (
    AUDIO_SUFFIXES,
    Clip,
    Corpus,
    anywhere,
    audio_records,
    files_by_stem,
    is_prepared,
    read_table,
    require_file,
    require_folder,
    whole_folder,
    write_corpus,
)
from components.data.recipes.youtube import find_clip
from components.data.splits import share_of
from utils.errors import UserError

CORPUS = Corpus(
    "AudioSet",
    "labels CC BY 4.0, ontology CC BY-SA 4.0; audio: of each video's uploader",
    "https://research.google.com/audioset",
)
_LAYOUT = "a folder with {balanced_train,eval}_segments.csv, class_labels_indices.csv (or ontology.json) and the clips"


def prepare_audioset(
    output_dir: str,
    data_root: str | None = None,
    train_sets: Sequence[str] = ("balanced_train",),
    val_share: float = 0.05,
) -> None:
    """Write `{train,val,test}.jsonl` into `output_dir`; does nothing if they are there.

    A record has `tags` (the classes by name), `mids` (by AudioSet's ids) and `youtube_id`. Clips whose file is missing
    are counted, and listed in `left_out.jsonl`: hardly anyone has all. `classes.txt` lists the classes.

    Args:
        data_root: the tables of segments (`YTID, start_seconds, end_seconds, positive_labels`), the class names, and
            the clips, all somewhere below it: `<id>_<start>.wav`, `<id>_<start>_<end>.wav`, `<id>.wav` or `Y<id>.wav`,
            times in seconds or milliseconds (or .flac, .ogg, .opus, .mp3). It is only read.
        train_sets: `balanced_train`, `unbalanced_train` or both.
        val_share: of the training videos.

    Raises:
        UserError: no `data_root`, a table is missing, a label is unknown, or a split has no clip.
    """
    folder = Path(output_dir)
    settings = {"data_root": data_root, "train_sets": list(train_sets), "val_share": val_share, "version": 1}
    if is_prepared(folder, settings):
        return
    if data_root is None:
        raise UserError(f"AudioSet is handed out without its audio: give data_root=DIR, {_LAYOUT}")
    corpus = require_folder(data_root)
    files = files_by_stem([corpus], AUDIO_SUFFIXES)
    names = _class_names(corpus)
    left_out: list[Record] = []
    splits: dict[str, list[Record]] = {"train": [], "val": [], "test": []}
    for part in (*train_sets, "eval"):
        for record in audio_records(_clips(corpus, part, files, names), left_out):
            held_out = share_of(record["youtube_id"]) < val_share
            splits["test" if part == "eval" else "val" if held_out else "train"].append(record)
    with whole_folder(folder, settings) as temporary:
        write_corpus(temporary, CORPUS, splits, left_out)
        (temporary / "classes.txt").write_text("".join(f"{name}\n" for name in names.values()), encoding="utf-8")


def _clips(corpus: Path, part: str, files: dict[str, Path], names: dict[str, str]) -> Iterator[Clip]:
    table = require_file(corpus, *anywhere(f"{part}_segments.csv"), layout=_LAYOUT)
    with table.open(encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.reader(file, skipinitialspace=True), start=1):
            if not row or row[0].startswith("#"):
                continue
            try:
                video, start, end, labels = row[0], float(row[1]), float(row[2]), row[3].split(",")
                tags = [names[label] for label in labels]
            except (IndexError, ValueError):
                raise UserError(f"{table}:{number}: no segment: YTID, start_seconds, end_seconds, labels") from None
            except KeyError as error:
                raise UserError(f"{table}:{number}: the label {error} has no name in the class list") from None
            path = find_clip(files, video, start, end)
            yield Clip(path, f"{video}_{start:g}", {"youtube_id": video, "tags": tags, "mids": labels})


def _class_names(corpus: Path) -> dict[str, str]:
    """AudioSet's id -> name, in the order of the classes."""
    path = require_file(corpus, *anywhere("class_labels_indices.csv"), *anywhere("ontology.json"), layout=_LAYOUT)
    if path.suffix == ".json":
        return {entry["id"]: entry["name"] for entry in json.loads(path.read_text(encoding="utf-8"))}
    return {row["mid"]: row["display_name"] for row in read_table(path, ("index", "mid", "display_name"))}

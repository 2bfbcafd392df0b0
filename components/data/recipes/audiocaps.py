"""AudioCaps: sounds of AudioSet described in a sentence.

What: ten-second clips cut out of YouTube videos; 49 838 with one caption for training, 495 and 975 with five each for
validation and test (release 1.0).
Licence: the captions are MIT (C. D. Kim et al., NAACL 2019); the sounds belong to those who uploaded the videos, and
are handed out by nobody: `data_root` is what you have of them.
Source: github.com/cdjkim/audiocaps.
Splits: those of the corpus.
"""

from __future__ import annotations

from pathlib import Path

from components.data.manifest import Record
from components.data.recipes.common import (
    AUDIO_SUFFIXES,
    Clip,
    Corpus,
    audio_records,
    captioned,
    files_by_stem,
    is_prepared,
    read_table,
    require_file,
    require_folder,
    whole_folder,
    write_corpus,
)
from components.data.recipes.youtube import find_clip
from utils.errors import UserError

CORPUS = Corpus("AudioCaps", "captions MIT; audio: of each video's uploader", "https://github.com/cdjkim/audiocaps")
_LAYOUT = "a folder with train.csv, val.csv and test.csv (here, or in dataset/) and the clips as audio files"
_COLUMNS = ("audiocap_id", "youtube_id", "start_time", "caption")
_SECONDS = 10.0


def prepare_audiocaps(output_dir: str, data_root: str | None = None, each_caption: bool = True) -> None:
    """Write `{train,val,test}.jsonl` into `output_dir`; does nothing if they are there.

    A record has `caption`, `captions` (all of the clip's) and `youtube_id`. Clips whose file is missing are counted,
    and listed in `left_out.jsonl`: hardly anyone has all.

    Args:
        data_root: the tables (`audiocap_id,youtube_id,start_time,caption`) and the clips, somewhere below it, as
            `<youtube_id>_<start>.wav`, `<youtube_id>_<start>_<end>.wav`, `<youtube_id>.wav`, `Y<youtube_id>.wav` or
            `<audiocap_id>.wav` (or .flac, .ogg, .opus, .mp3). It is only read.
        each_caption: where a training clip has several captions, one record for each.

    Raises:
        UserError: no `data_root`, a table is missing, or a split has no clip.
    """
    folder = Path(output_dir)
    settings = {"data_root": data_root, "each_caption": each_caption, "version": 1}
    if is_prepared(folder, settings):
        return
    if data_root is None:
        raise UserError(f"AudioCaps is handed out without its audio: give data_root=DIR, {_LAYOUT}")
    corpus = require_folder(data_root)
    files = files_by_stem([corpus], AUDIO_SUFFIXES)
    splits: dict[str, list[Record]] = {}
    left_out: list[Record] = []
    for split in ("train", "val", "test"):
        table = require_file(corpus, f"{split}.csv", f"*/{split}.csv", layout=_LAYOUT)
        splits[split] = audio_records(_clips(table, files, each_caption and split == "train"), left_out)
    with whole_folder(folder, settings) as temporary:
        write_corpus(temporary, CORPUS, splits, left_out)


def _clips(table: Path, files: dict[str, Path], each: bool) -> list[Clip]:
    captions: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in read_table(table, _COLUMNS):
        captions.setdefault((row["youtube_id"], row["start_time"]), []).append(row)
    clips = []
    for (video, start), rows in captions.items():
        begin = _seconds(start, table)
        numbers = [row["audiocap_id"] for row in rows]
        path = find_clip(files, video, begin, begin + _SECONDS, *numbers)
        clip = Clip(path, f"{video}_{begin:g}", {"youtube_id": video, "audiocap_ids": numbers})
        clips += captioned(clip, [row["caption"].strip() for row in rows], each)
    return clips


def _seconds(text: str, table: Path) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"{table}: start_time {text!r} is no number") from None

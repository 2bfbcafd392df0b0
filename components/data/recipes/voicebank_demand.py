"""VoiceBank+DEMAND: read sentences, clean and with noise, to learn to remove it.

What: 11 572 pairs of 28 speakers for training, 824 of 2 others for testing, 48 kHz mono; noises of DEMAND and two made
ones at 15, 10, 5 and 0 dB (training) or 17.5, 12.5, 7.5 and 2.5 dB (test).
Licence: CC BY 4.0 (C. Valentini-Botinhao, University of Edinburgh, doi:10.7488/ds/2117).
Source: datashare.ed.ac.uk/handle/10283/2791.
Splits: the corpus's training and test sets; the speakers that are named `val_speakers` are taken out of training.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from components.data.manifest import Record
from components.data.recipes.common import (
    Clip,
    Corpus,
    audio_record,
    audio_records,
    is_prepared,
    whole_folder,
    write_corpus,
)
from components.data.recipes.download import RemoteFile, given_or_downloaded
from utils.errors import UserError

CORPUS = Corpus("VoiceBank+DEMAND", "CC BY 4.0", "https://doi.org/10.7488/ds/2117")
_BASE = "https://datashare.ed.ac.uk/bitstream/handle/10283/2791"
_MD5 = {
    "clean_trainset_28spk_wav.zip": "d2d5a45ec32f8fcbf201bde0447e20ba",
    "noisy_trainset_28spk_wav.zip": "1fca9e8bafb8cd069f6653c6d92f9e9c",
    "clean_testset_wav.zip": "34eb1c0ba7ef667e9b966866c542fc16",
    "noisy_testset_wav.zip": "fb1b86caa31e8ba5b506c0c64da9aab5",
    "trainset_28spk_txt.zip": None,
    "testset_txt.zip": None,
}
_LAYOUT = "a folder with {clean,noisy}_trainset_28spk_wav/ and {clean,noisy}_testset_wav/"
_LONGEST_DIFFERENCE = 0.01  # s, between the two of a pair


def prepare_voicebank_demand(
    output_dir: str,
    download_dir: str | None = None,
    val_speakers: Sequence[str] = ("p226", "p287"),
    data_root: str | None = None,
) -> None:
    """Write `{train,val,test}.jsonl` into `output_dir`; does nothing if they are there.

    `audio_path` is the noisy recording, `target_path` the clean one, of the same length; `speaker`, and `text` where
    the transcripts are there.

    Args:
        download_dir: where the archives (5 GB) are fetched and unpacked, if they are needed.
        val_speakers: of the training set; a custom of the field, the corpus names none.
        data_root: a copy of the corpus; it is only read. The set of 56 speakers is taken where that of 28 is not there.

    Raises:
        UserError: a folder is missing, a split has no pair, or the download is impossible.
    """
    folder = Path(output_dir)
    settings = {"data_root": data_root, "val_speakers": list(val_speakers), "version": 1}
    if is_prepared(folder, settings):
        return
    files = [RemoteFile(f"{_BASE}/{name}", md5) for name, md5 in _MD5.items()]
    wanted = f"VoiceBank+DEMAND: give data_root=DIR, {_LAYOUT}, or let it be downloaded"
    corpus = given_or_downloaded(data_root, download_dir, files, "voicebank_demand", wanted)
    left_out: list[Record] = []
    splits: dict[str, list[Record]] = {"train": [], "val": [], "test": _pairs(corpus, ("testset",), left_out)}
    for record in _pairs(corpus, ("trainset_28spk", "trainset_56spk"), left_out):
        splits["val" if record["speaker"] in set(val_speakers) else "train"].append(record)
    with whole_folder(folder, settings) as temporary:
        write_corpus(temporary, CORPUS, splits, left_out)


def _pairs(corpus: Path, names: Sequence[str], left_out: list[Record]) -> list[Record]:
    for name in names:
        found = [_folder(corpus, f"{kind}_{name}_wav") for kind in ("noisy", "clean")]
        if None not in found:
            break
    else:
        raise UserError(f"{corpus} holds no noisy_{names[0]}_wav and clean_{names[0]}_wav: data_root must be {_LAYOUT}")
    noisy, clean = (path for path in found if path is not None)
    texts = _folder(corpus, f"{name}_txt")
    clips = []
    for path in sorted(noisy.glob("*.wav")):
        fields = {"target_path": str((clean / path.name).absolute()), "speaker": path.stem.partition("_")[0]}
        transcript = texts / f"{path.stem}.txt" if texts else None
        if transcript is not None and transcript.is_file():
            fields["text"] = transcript.read_text(encoding="utf-8").strip()
        clips.append(Clip(path, path.stem, fields))
    return [record for record in audio_records(clips, left_out) if _is_pair(record, left_out)]


def _is_pair(record: Record, left_out: list[Record]) -> bool:
    reason = None
    try:
        clean = audio_record(Path(record["target_path"]), record["id"])
    except UserError:
        reason = "no clean recording"
    else:
        if abs(clean["duration"] - record["duration"]) > _LONGEST_DIFFERENCE:
            reason = "clean and noisy differ in length"
    if reason:
        left_out.append({"id": record["id"], "audio_path": record["audio_path"], "reason": reason})
    return reason is None


def _folder(corpus: Path, name: str) -> Path | None:
    """The folder `name`, here or one or two levels below: an archive may hold a folder of its own name."""
    for pattern in (f"{name}/{name}", name, f"*/{name}", f"*/*/{name}"):
        for path in sorted(corpus.glob(pattern)):
            if path.is_dir():
                return path
    return None

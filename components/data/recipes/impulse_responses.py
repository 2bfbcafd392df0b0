"""Room impulse responses, to put dry recordings into rooms.

What: OpenSLR 28, "Room Impulse Response and Noise Database": 60 000 simulated responses of 600 rooms, 325 measured ones
(RWCP, REVERB 2014, Aachen), their isotropic noises, and 843 point-source noises of MUSAN; 16 kHz. Or any folder of
responses. Lhotse's recipe for it takes only those measured ones whose file name has `rir` in it, and so loses Aachen's;
here the lists that come with the corpus decide.
Licence: Apache-2.0 (T. Ko et al., ICASSP 2017); of another folder: its own.
Source: www.openslr.org/28.
Manifests: `impulse_responses.jsonl`, and `noises.jsonl` where there are any.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from components.data.manifest import Record
from components.data.recipes.common import (
    AUDIO_SUFFIXES,
    Clip,
    Corpus,
    audio_records,
    is_prepared,
    whole_folder,
    write_corpus,
)
from components.data.recipes.download import RemoteFile, given_or_downloaded
from utils.errors import UserError

CORPUS = Corpus("Room Impulse Response and Noise Database", "Apache-2.0", "https://www.openslr.org/28")
URL = "https://www.openslr.org/resources/28/rirs_noises.zip"
_FOLDERS = ("simulated_rirs", "real_rirs_isotropic_noises", "pointsource_noises")
_PARTS = ("simulated", "real")
_ROOM = re.compile(r"--room-id\s+(\S+)")


def prepare_impulse_responses(
    output_dir: str,
    download_dir: str | None = None,
    parts: Sequence[str] = ("simulated", "real"),
    data_root: str | None = None,
) -> None:
    """Write `impulse_responses.jsonl` (and `noises.jsonl`) into `output_dir`; does nothing if they are there.

    A record has `part` and, of OpenSLR 28, `room`; the responses keep their channels.

    Args:
        download_dir: where the archive (1.3 GB) is fetched and unpacked, if it is needed.
        parts: `simulated`, `real` or both; of another folder than OpenSLR 28 everything is taken.
        data_root: `RIRS_NOISES` (or the folder it lies in), or any folder of audio files; it is only read.

    Raises:
        UserError: there is no response, or the download is impossible.
    """
    folder = Path(output_dir)
    settings = {"data_root": data_root, "parts": list(parts), "version": 1}
    if is_prepared(folder, settings):
        return
    if not parts or set(parts) - set(_PARTS):
        raise UserError(f"parts: {' and '.join(_PARTS)} are to be had, not {', '.join(parts) or 'nothing'}")
    wanted = "give data_root=DIR, a folder of impulse responses, or let OpenSLR 28 be downloaded"
    corpus = given_or_downloaded(data_root, download_dir, [RemoteFile(URL)], "rirs_noises", wanted)
    tree = next((path for path in (corpus, corpus / "RIRS_NOISES") if (path / _FOLDERS[0]).is_dir()), None)
    left_out: list[Record] = []
    about = Corpus(corpus.name, "that of the folder's files", str(corpus)) if tree is None else CORPUS
    clips = {"impulse_responses": _any_folder(corpus)} if tree is None else _openslr(tree, parts)
    found = {name: audio_records(entries, left_out) for name, entries in clips.items() if entries}
    if not found.get("impulse_responses"):
        raise UserError(f"{corpus} holds no impulse response of the parts {', '.join(parts)}")
    with whole_folder(folder, settings) as temporary:
        write_corpus(temporary, about, found, left_out)


def _any_folder(corpus: Path) -> list[Clip]:
    files = sorted(path for path in corpus.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)
    return [Clip(path, path.relative_to(corpus).as_posix(), {"part": "folder"}) for path in files]


def _openslr(tree: Path, parts: Sequence[str]) -> dict[str, list[Clip]]:
    responses, noises = [], []
    if "simulated" in parts:
        for size in ("small", "medium", "large"):
            for path in sorted((tree / "simulated_rirs" / f"{size}room").rglob("*.wav")):
                fields = {"part": "simulated", "room": f"{size}-{path.parent.name}"}
                responses.append(Clip(path, f"{size}-{path.stem}", fields))
    if "real" in parts:
        rooms, noise_files = _lists(tree / "real_rirs_isotropic_noises")
        for path in sorted((tree / "real_rirs_isotropic_noises").glob("*.wav")):
            if path.name in noise_files or (path.name not in rooms and "noise" in path.stem):
                noises.append(Clip(path, path.stem, {"part": "isotropic"}))
            else:
                room = {"room": rooms[path.name]} if path.name in rooms else {}
                responses.append(Clip(path, path.stem, {"part": "real", **room}))
    noises += [
        Clip(path, path.stem, {"part": "point_source"}) for path in sorted((tree / "pointsource_noises").glob("*.wav"))
    ]
    return {"impulse_responses": responses, "noises": noises}


def _lists(folder: Path) -> tuple[dict[str, str], set[str]]:
    """File name -> room of `rir_list`, and the file names of `noise_list`; both end their lines in a path."""
    lines = {}
    for name in ("rir_list", "noise_list"):
        path = folder / name
        lines[name] = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    rooms = {}
    for line in lines["rir_list"]:
        if line.strip() and (room := _ROOM.search(line)):
            rooms[Path(line.split()[-1]).name] = room[1]
    return rooms, {Path(line.split()[-1]).name for line in lines["noise_list"] if line.strip()}

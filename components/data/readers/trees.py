"""Audio in folders: LibriSpeech's tree, and any other."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePath

from components.data.faults import Fault
from components.data.manifest import AUDIO_SUFFIXES, Record, numbered_lines
from components.data.readers.layout import Layout, Row

_TRANSCRIPTS = ".trans.txt"
# Audio that libsndfile does not decode.
_UNDECODED = {".m4a", ".aac", ".wma", ".amr"}
_LIBRISPEECH_SUFFIXES = (".flac", ".wav", ".opus", ".mp3", ".ogg")


def claims_librispeech(path: Path) -> bool:
    """A chapter, a speaker, a split, or all of LibriSpeech: some `*.trans.txt` at most four folders down."""
    return path.is_dir() and any(any(path.glob(f"{'*/' * depth}*{_TRANSCRIPTS}")) for depth in range(5))


def librispeech_rows(path: Path) -> Iterator[Row]:
    """`<split>/<speaker>/<chapter>/<speaker>-<chapter>.trans.txt`: a line is an utterance's name and its text."""
    for folder, _, names in _walk(path):
        for name in (name for name in names if name.endswith(_TRANSCRIPTS)):
            transcripts = Path(folder, name)
            speaker, _, chapter = name.removesuffix(_TRANSCRIPTS).partition("-")
            fields = {"speaker": speaker, "chapter": chapter}
            if transcripts.parts[-3:-1] == (speaker, chapter) and len(transcripts.parts) > 3:
                fields["split"] = transcripts.parts[-4]
            for number, line in numbered_lines(transcripts):
                utterance, _, text = line.decode(errors="surrogateescape").strip().partition(" ")
                suffix = next((s for s in _LIBRISPEECH_SUFFIXES if utterance + s in names), None)
                where = f"{transcripts}:{number}"
                if suffix is None:
                    yield where, Fault("no such file", f"no audio of {utterance!r} lies beside the transcripts")
                else:
                    audio = os.path.join(folder, utterance + suffix)
                    yield where, {"id": utterance, "audio_path": audio, "text": text.strip(), **fields}


def claims_folder(path: Path) -> bool:
    """A folder with audio somewhere below, or an audio file."""
    if path.is_file():
        return path.suffix.lower() in AUDIO_SUFFIXES
    return any(_is_audio(name) for _, _, names in _walk(path) for name in names)


def folder_rows(path: Path, target: str = "label", text_suffix: str = ".txt") -> Iterator[Row]:
    """Every audio file below, in sorted order; its id is the path from there without the suffix.

    Args:
        target: `labels: {target: name}` gets the name of the uppermost folder that the file is in.
        text_suffix: a file so named beside the audio (`a.txt` for `a.wav`) is its text.
    """
    if path.is_file():
        yield str(path), {"id": path.stem, "audio_path": os.path.abspath(path)}
        return
    for folder, inside, names in _walk(path):
        beside, stems = set(names), Counter(PurePath(name).stem for name in names if _is_audio(name))
        for name in names:
            stem, suffix = PurePath(name).stem, PurePath(name).suffix.lower()
            if suffix in _UNDECODED:
                yield (
                    os.path.join(folder, name),
                    Fault(f"{suffix} audio", f"{suffix} is not decoded: convert it to FLAC"),
                )
            if suffix not in AUDIO_SUFFIXES:
                continue
            audio = os.path.join(folder, name)
            # a.wav beside a.flac: the suffix tells them apart
            record: Record = {"id": "/".join([*inside, stem if stems[stem] == 1 else name]), "audio_path": audio}
            if inside:
                record["labels"] = {target: inside[0]}
            if stem + text_suffix in beside:
                record["text"] = Path(folder, stem + text_suffix).read_text("utf-8", "surrogateescape").strip()
            yield audio, record


def _walk(path: Path) -> Iterator[tuple[str, tuple[str, ...], list[str]]]:
    """(folder, its parts below `path`, names of the files in it), sorted; hidden ones are left out."""
    root = os.path.abspath(path)
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inside = os.path.relpath(folder, root)
        parts = () if inside == "." else PurePath(inside).parts
        yield folder, parts, sorted(name for name in names if not name.startswith("."))


def _is_audio(name: str) -> bool:
    return PurePath(name).suffix.lower() in AUDIO_SUFFIXES


LIBRISPEECH = Layout("LibriSpeech's tree of speakers and chapters", claims_librispeech, librispeech_rows)
FOLDER = Layout("a folder of audio; sub-folders are labels", claims_folder, folder_rows)

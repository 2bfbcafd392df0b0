"""A Kaldi data folder: `wav.scp`, `segments`, `text`, `utt2spk`, `utt2dur`, `utt2lang`, sorted by bytes."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from components.data.faults import Fault
from components.data.manifest import Record
from utils.errors import UserError

logger = logging.getLogger(__name__)

_FILES = ("wav.scp", "segments", "text", "utt2spk", "utt2dur", "utt2lang")
_KEPT = {"id", "audio_path", "duration", "sample_rate", "offset", "channel", "text", "speaker", "language"}


@contextmanager
def kaldi_writer(target: Path) -> Iterator[Callable[[Record], None]]:
    """The folder `target`, which must not be there; keys that Kaldi has no place for are counted in the log.

    Every utterance is a recording of its own, so several may name one file. `segments` is there when any has an
    `offset`. As Kaldi wants a speaker of everyone, one who is not known is called by the utterance.

    Raises:
        UserError: the folder is there already, or cannot be written.
    """
    if target.exists():
        raise UserError(f"{target} is there already: remove it, or name another folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    lost: Counter[str] = Counter()
    has_segments = False
    try:
        with ExitStack() as stack:
            files = {name: stack.enter_context((temporary / name).open("wb")) for name in _FILES}

            def write(record: Record) -> None:
                nonlocal has_segments
                for name, rest in _lines(record).items():
                    line = f"{record['id']} {rest}\n"
                    files[name].write(line.encode("utf-8", "surrogateescape"))
                lost.update(record.keys() - _KEPT)
                has_segments = has_segments or "offset" in record or "channel" in record

            yield write
        _finish(temporary, has_segments)
        temporary.chmod(0o755)
        temporary.rename(target)
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if lost:
        told = ", ".join(f"{key} of {count}" for key, count in sorted(lost.items()))
        logger.warning("%s: Kaldi has no place for %s", target, told)


def _lines(record: Record) -> dict[str, str]:
    if "member" in record or "byte_offset" in record:
        raise Fault("audio in a container", "Kaldi reads no audio inside of a tar or HDF5 file")
    if any(character.isspace() for character in record["id"]):
        raise Fault("bad id", f"the id {record['id']!r} has spaces, which Kaldi's files are separated by")
    start = record.get("offset", 0)
    span = f"{record['id']} {start:.6f} {start + record['duration']:.6f}"
    lines = {
        "wav.scp": os.path.abspath(record["audio_path"]),
        "segments": span if record.get("channel") is None else f"{span} {record['channel']}",
        "utt2spk": str(record.get("speaker", record["id"])),
        "utt2dur": f"{record['duration']:.6f}",
    }
    for name, key in (("text", "text"), ("utt2lang", "language")):
        if key in record:
            lines[name] = " ".join(record[key].split())
    return lines


def _finish(folder: Path, has_segments: bool) -> None:
    for name in _FILES:
        path = folder / name
        lines = sorted(path.read_bytes().splitlines(keepends=True))
        if not lines or (name == "segments" and not has_segments):
            path.unlink()
        else:
            path.write_bytes(b"".join(lines))

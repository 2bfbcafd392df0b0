"""What recipes share: when to run, folders that are whole or not there, what is written beside the manifests."""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from components.data.faults import Fault
from components.data.manifest import Record, write_manifest
from components.data.readers.headers import header_of
from utils.errors import UserError
from utils.io import write_json, write_jsonl

logger = logging.getLogger(__name__)

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3")

_MARK = "prepared.json"
_NUM_THREADS = 8


@dataclass(frozen=True, slots=True)
class Corpus:
    """What a corpus is called, on what terms it may be used, and where it comes from."""

    name: str
    licence: str
    source: str


@dataclass(frozen=True, slots=True)
class Clip:
    """A clip that a corpus promises: its file (None where none was found), its id, and what is known of it."""

    path: Path | None
    id: str
    fields: dict[str, Any] = field(default_factory=dict)


def is_prepared(output_dir: Path, settings: dict[str, Any]) -> bool:
    """Whether `output_dir` was finished with the same settings."""
    try:
        return json.loads((output_dir / _MARK).read_text(encoding="utf-8")) == _plain(settings)
    except (OSError, json.JSONDecodeError):
        return False


@contextmanager
def whole_folder(output_dir: Path, settings: dict[str, Any]) -> Iterator[Path]:
    """A temporary folder that becomes `output_dir`, replacing an older one, if the block ends well; else nothing."""
    temporary = None
    try:
        output_dir.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{output_dir.name}.", dir=output_dir.parent))
        yield temporary
        (temporary / _MARK).write_text(json.dumps(_plain(settings), indent=1) + "\n", encoding="utf-8")
        temporary.chmod(0o755)
        if output_dir.exists() and not is_prepared(output_dir, settings):
            _remove_older(output_dir)
        temporary.rename(output_dir)
    except OSError as error:
        # Two runs that began together: the first one's folder is as good.
        if not is_prepared(output_dir, settings):
            raise UserError(f"cannot write {output_dir}: {error.strerror}") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _remove_older(output_dir: Path) -> None:
    """Only what a recipe made is replaced: a folder of one's own that was named by mistake is not."""
    if any(output_dir.iterdir()) and not (output_dir / _MARK).is_file():
        raise UserError(f"{output_dir} holds something that no recipe made: choose another folder, or empty it")
    shutil.rmtree(output_dir)


def _plain(settings: dict[str, Any]) -> Any:
    return json.loads(json.dumps(settings, sort_keys=True, default=str))


# ------------------------------------------------------------------------------------------------------------- clips


def audio_record(path: Path, identifier: str, **fields: Any) -> Record:
    """A manifest record of a file that stays where it is, by absolute path.

    Raises:
        UserError: the file is missing, empty or no audio.
    """
    try:
        return _read_record(path, identifier, fields)
    except Fault as fault:
        raise UserError(fault.detail) from None


def audio_records(clips: Iterable[Clip], left_out: list[Record]) -> list[Record]:
    """Records of those `clips` whose file can be read, in order; the others are added to `left_out` with a reason.

    Headers are read by several threads: a large corpus lies on slow disks more often than not.
    """

    def read(clip: Clip) -> tuple[Record | None, Record | None]:
        if clip.path is None:
            return None, {"id": clip.id, "reason": "no such file"}
        try:
            return _read_record(clip.path, clip.id, clip.fields), None
        except Fault as fault:
            path = str(clip.path.absolute())
            return None, {"id": clip.id, "audio_path": path, "reason": fault.reason, "detail": fault.detail}

    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        read_clips = list(pool.map(read, clips))
    left_out += [missing for _, missing in read_clips if missing is not None]
    return [record for record, _ in read_clips if record is not None]


def _read_record(path: Path, identifier: str, fields: Mapping[str, Any]) -> Record:
    audio = {"audio_path": str(path.absolute())}
    header = header_of(audio)
    length = {"duration": round(header.num_samples / header.sample_rate, 6), "sample_rate": header.sample_rate}
    return {"id": identifier, **audio, **length, **fields}


def files_by_stem(folders: Iterable[Path], suffixes: Iterable[str]) -> dict[str, Path]:
    """Audio files below `folders` by their name without suffix; of two that are called alike, the first in order."""
    wanted, found = {suffix.lower() for suffix in suffixes}, {}
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() in wanted and not path.name.startswith("."):
                found.setdefault(path.name[: -len(path.suffix)], path)
    return found


def read_table(path: Path, columns: Sequence[str] = (), **format: Any) -> Iterator[dict[str, str]]:
    """Rows of a CSV with a header; UTF-8, or Latin-1 where it is not.

    Args:
        columns: those that must be there.
        format: for `csv.DictReader`.

    Raises:
        UserError: there is no such file, or a column is missing.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    rows = csv.DictReader(io.StringIO(text, newline=""), **format)
    if missing := [name for name in columns if name not in (rows.fieldnames or ())]:
        found = ", ".join(rows.fieldnames or ()) or "nothing"
        raise UserError(f"{path}: the column {missing[0]!r} is missing; it has {found}")
    return iter(rows)


def captioned(clip: Clip, captions: Sequence[str], each: bool) -> list[Clip]:
    """`clip` with its captions.

    Args:
        each: one clip per caption, `<id>_1`, `<id>_2`, ..., for training; else one with the first as `caption`. Every
            one has all of them as `captions`, which evaluation compares with.
    """
    if not each or len(captions) == 1:
        return [Clip(clip.path, clip.id, clip.fields | {"caption": captions[0], "captions": list(captions)})]
    return [
        Clip(clip.path, f"{clip.id}_{number}", clip.fields | {"caption": caption, "captions": list(captions)})
        for number, caption in enumerate(captions, start=1)
    ]


# ---------------------------------------------------------------------------------------------------------- manifests


def write_splits(folder: Path, splits: Mapping[str, list[Record]]) -> None:
    """One manifest per split, `<split>.jsonl`; each must hold a clip."""
    for split, records in splits.items():
        if not records:
            raise UserError(f"the {split} split would be empty: data_root holds none of its clips")
        write_manifest(folder / f"{split}.jsonl", records)


def write_corpus(
    folder: Path,
    corpus: Corpus,
    splits: Mapping[str, list[Record]],
    left_out: Sequence[Record] = (),
    overlapping: bool = False,
    **facts: Any,
) -> None:
    """Write the manifests of `splits`, `corpus.json` (licence, source, what each split holds) and `left_out.jsonl`.

    Args:
        left_out: clips that the corpus promises and that could not be had, `{"id", "reason", ...}`.
        overlapping: the same clip may be in several splits.
        facts: what else `corpus.json` is to say.

    Raises:
        UserError: a split is empty, an id comes twice in it, a clip is in two splits, or a duration is impossible.
    """
    check_splits(splits, overlapping)
    write_splits(folder, splits)
    summary = {split: _summary(records) for split, records in splits.items()}
    about = {"name": corpus.name, "licence": corpus.licence, "source": corpus.source, "splits": summary}
    write_json(folder / "corpus.json", {**about, "left_out": len(left_out), **facts})
    held = "; ".join(f"{split} {found['clips']} clips, {found['hours']} h" for split, found in summary.items())
    logger.info("%s: %s", corpus.name, held)
    if left_out:
        write_jsonl(folder / "left_out.jsonl", list(left_out))
        reasons = Counter(str(entry["reason"]) for entry in left_out).most_common(3)
        why = ", ".join(f"{count} x {reason}" for reason, count in reasons)
        logger.warning("%s: %d clips were left out (%s): see left_out.jsonl", corpus.name, len(left_out), why)


def check_splits(splits: Mapping[str, list[Record]], overlapping: bool = False) -> None:
    """Look over the records of a corpus before they are written. Raises as `write_corpus`."""
    home: dict[tuple[Any, ...], str] = {}
    for split, records in splits.items():
        ids: set[str] = set()
        for record in records:
            where = f"{record['id']} of the {split} split"
            if record["id"] in ids:
                raise UserError(f"the id {where} comes twice")
            ids.add(record["id"])
            if not (math.isfinite(record["duration"]) and record["duration"] > 0):
                raise UserError(f"{where} has an impossible duration, {record['duration']} s")
            heard = (record["audio_path"], record.get("offset"), record.get("channel"))
            if home.setdefault(heard, split) != split and not overlapping:
                raise UserError(f"{where} is a clip of the {home[heard]} split too")


def _summary(records: Sequence[Record]) -> dict[str, Any]:
    seconds = [record["duration"] for record in records]
    rates = Counter(record["sample_rate"] for record in records)
    return {
        "clips": len(records),
        "hours": round(sum(seconds) / 3600, 3),
        "shortest": min(seconds, default=0.0),
        "longest": max(seconds, default=0.0),
        "sample_rates": {str(rate): count for rate, count in sorted(rates.items())},
    }


def require_folder(data_root: str | Path) -> Path:
    """`data_root` as a path.

    Raises:
        UserError: there is no such folder.
    """
    path = Path(data_root).expanduser()
    if not path.is_dir():
        raise UserError(f"data_root={data_root} is not a folder")
    return path


def anywhere(name: str) -> list[str]:
    """Patterns for `name` in a folder, and one or two levels below it."""
    return [name, f"*/{name}", f"*/*/{name}"]


def require_file(corpus: Path, *names: str, layout: str) -> Path:
    """The first of `names` (glob patterns) below `corpus`.

    Raises:
        UserError: there is none; says what the corpus's folder should hold, `layout`.
    """
    for name in names:
        for path in sorted(corpus.glob(name)):
            return path
    raise UserError(f"{corpus} holds no {names[0]}: data_root must be {layout}")

"""Lhotse: manifests of cuts, and Shar folders. They are JSON, read without the library."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

from components.data.faults import Fault, parse_object
from components.data.manifest import Record, numbered_lines
from components.data.readers.jsonl import SUFFIXES, objects
from components.data.readers.layout import Layout, RelativeTo, Row
from components.data.readers.tar_shards import Member, members
from utils.errors import UserError

_CUT_TYPES = {"MonoCut", "MultiCut", "MixedCut", "PaddingCut"}
_SHARD = re.compile(r"cuts(\.\d+)?\.jsonl(\.gz)?$")
# What a supervision says of its span, not of how it was cut.
_SPOKEN = ("text", "speaker", "language", "gender")


def claims(path: Path) -> bool:
    """A JSONL file whose first line is a cut."""
    if not (path.is_file() and path.name.lower().endswith(SUFFIXES)):
        return False
    try:
        first = next(numbered_lines(path), (0, b"{}"))[1]
        return parse_object(first).get("type") in _CUT_TYPES
    except (Fault, UserError):
        return False


def rows(path: Path, supervisions: str = "join") -> Iterator[Row]:
    """One record per cut: its `start` is the `offset`, and what is `custom` lies beside our keys.

    Args:
        supervisions: what becomes of a cut with several: "join" joins their texts with spaces (and keeps speaker and
            language where they agree), "split" makes a record of each, called by its own id.
    """
    resolve = RelativeTo(path.parent)
    for where, cut in objects(path):
        if isinstance(cut, Fault):
            yield where, cut
            continue
        try:
            audio = _audio_of_cut(cut, resolve)
            yield from ((where, record) for record in _records(cut, audio, supervisions))
        except Fault as fault:
            yield where, fault
        except (KeyError, TypeError, AttributeError) as error:
            yield where, Fault("not a cut", f"not a cut of Lhotse's ({type(error).__name__}: {error})")


def claims_shar(path: Path) -> bool:
    """A folder of `cuts.*.jsonl.gz` beside `recording.*.tar`."""
    return path.is_dir() and any(_shards(path)) and any(path.glob("recording*.tar*"))


def shar_rows(path: Path, supervisions: str = "join") -> Iterator[Row]:
    """The cuts of every shard; their audio is a range of bytes of the shard's `recording.*.tar`.

    Args:
        supervisions: as for a manifest of cuts.
    """
    for cuts in _shards(path):
        number = _SHARD.search(cuts.name)[1] or ""
        tar = path / f"recording{number}.tar"
        for (where, cut), stored in zip_longest(objects(cuts), _stored(tar), fillvalue=(str(tar), None)):
            try:
                yield from ((where, record) for record in _from_shar(cut, stored, tar, supervisions))
            except Fault as fault:
                yield where, fault
            except (KeyError, TypeError, AttributeError) as error:
                yield where, Fault("not a cut", f"not a cut of Lhotse's ({type(error).__name__}: {error})")


def _shards(path: Path) -> list[Path]:
    return sorted(file for file in path.glob("cuts*.jsonl*") if _SHARD.search(file.name))


def _stored(tar: Path) -> Iterator[Member | Fault]:
    """The audio of each cut in turn: every second member; the others describe it."""
    for _, member in members(tar):
        if isinstance(member, Fault) or not member.name.endswith((".json", ".nometa")):
            yield member


def _from_shar(cut: Any, stored: Any, tar: Path, supervisions: str) -> Iterator[Record]:
    for found in (cut, stored):
        if isinstance(found, Fault):
            raise found
    if not isinstance(cut, dict) or not isinstance(stored, Member):
        missing = "cuts" if isinstance(stored, Member) else "audio"
        raise Fault("half a shard", f"{tar} and its cuts do not agree: {missing} missing")
    name = stored.name.rpartition(".")[0]
    if name != cut["id"]:
        raise Fault("half a shard", f"cut {cut['id']!r} meets the audio of {name!r} in {tar}")
    if stored.name.endswith(".nodata"):
        raise Fault("no recording", f"cut {cut['id']!r} has no audio in {tar}")
    audio = {"audio_path": stored.path, "byte_offset": stored.offset, "num_bytes": stored.size}
    audio |= {"duration": cut["duration"], "sample_rate": cut["recording"]["sampling_rate"]}
    return _records(cut, audio, supervisions)


def _audio_of_cut(cut: Record, resolve: RelativeTo) -> Record:
    kind = cut.get("type")
    if kind not in ("MonoCut", "MultiCut"):
        raise Fault(f"a {kind}", f"a {kind} is no stretch of one recording: save its audio first (CutSet.save_audios)")
    recording = cut.get("recording")
    if recording is None:
        raise Fault("no recording", f"cut {cut['id']!r} has no recording")
    if transforms := recording.get("transforms"):
        names = ", ".join(str(step.get("name")) for step in transforms)
        raise Fault("a changed recording", f"cut {cut['id']!r} changes its audio ({names}): save it first")
    source, channel = _source(cut, recording)
    audio = {"audio_path": resolve(source["source"]), "duration": cut["duration"]}
    audio["sample_rate"] = recording["sampling_rate"]
    if cut["start"]:
        audio["offset"] = cut["start"]
    elif cut["duration"] < recording["duration"] - 0.001:
        audio["offset"] = 0.0  # the file's beginning, not all of it
    return audio if channel is None else audio | {"channel": channel}


def _source(cut: Record, recording: Record) -> tuple[Record, int | None]:
    """The file, and which of its channels; None where all of them are meant."""
    wanted = cut["channel"] if isinstance(cut["channel"], list) else [cut["channel"]]
    sources = [source for source in recording["sources"] if set(wanted) <= set(source["channels"])]
    if not sources:
        raise Fault("no such channel", f"cut {cut['id']!r} wants channels {wanted}, which no one source has")
    source = sources[0]
    if source["type"] == "url":
        raise Fault("a URL", f"cut {cut['id']!r} is at the URL {source['source']!r}: fetch the file first")
    if source["type"] != "file":
        raise Fault(f"a {source['type']}", f"cut {cut['id']!r} is of a source {source['type']!r}: save it to a file")
    if len(wanted) == len(source["channels"]):
        return source, None
    if len(wanted) > 1:
        raise Fault("some channels", f"cut {cut['id']!r} wants channels {wanted} of {source['channels']}: one, or all")
    return source, source["channels"].index(wanted[0])


def _records(cut: Record, audio: Record, supervisions: str) -> Iterator[Record]:
    spoken = cut.get("supervisions") or []
    custom = cut.get("custom") or {}
    if supervisions == "join":
        yield custom | _joined(spoken) | {"id": cut["id"]} | audio
        return
    if supervisions != "split":
        raise UserError(f"supervisions must be join or split, not {supervisions!r}")
    for span in spoken:
        # A supervision starts in the cut, and may reach beyond it.
        start, end = max(0.0, span["start"]), min(cut["duration"], span["start"] + span["duration"])
        place = {"offset": round(audio.get("offset", 0.0) + start, 6), "duration": round(end - start, 6)}
        yield custom | _of_one(span) | {"id": span["id"]} | audio | place


def _of_one(span: Record) -> Record:
    return (span.get("custom") or {}) | {key: span[key] for key in _SPOKEN if span.get(key) is not None}


def _joined(spoken: list[Record]) -> Record:
    if len(spoken) == 1:
        return _of_one(spoken[0])
    joined: Record = {}
    texts = [span["text"] for span in spoken if span.get("text")]
    if texts:
        joined["text"] = " ".join(texts)
    for key in _SPOKEN[1:]:
        values = {span.get(key) for span in spoken}
        if len(values) == 1 and None not in values:
            joined[key] = values.pop()
    return joined


LAYOUT = Layout("Lhotse cuts in JSONL", claims, rows)
SHAR = Layout("a Lhotse Shar folder", claims_shar, shar_rows)

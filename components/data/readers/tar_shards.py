"""Tar shards as WebDataset keeps them: `key.flac`, `key.json`, `key.txt` one after the other."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from components.data.faults import Fault, parse_object
from components.data.manifest import AUDIO_SUFFIXES, Record
from components.data.readers.aliases import with_our_keys
from components.data.readers.layout import Layout, Row
from components.data.stored import stored_bytes
from utils.errors import UserError

_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_TEXT_SUFFIXES = {"txt": "text", "transcript": "text", "lab": "text", "caption": "caption"}
_PACKERS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class Member(NamedTuple):
    """A file inside of a tar: its name there, and the bytes of `path` that it is."""

    name: str
    path: str
    offset: int
    size: int


def claims(path: Path) -> bool:
    """A tar, or a folder of them."""
    if path.is_dir():
        return any(path.glob("*.tar"))
    return path.is_file() and path.name.lower().endswith(_SUFFIXES)


def rows(path: Path) -> Iterator[Row]:
    """One record per key: fields from its `.json`, `text` from `.txt` or `.lab`, `caption` from `.caption`.

    The id is the JSON's, or else the key. What ends in none of these is left where it is. The members of a key lie one
    after the other, as the tools that write shards put them.
    """
    for shard in sorted(path.glob("*.tar")) if path.is_dir() else [path]:
        for key, group in groupby(members(shard), key=lambda found: _key(found[1])):
            where, parts = f"{shard}:{key}", [found for _, found in group]
            try:
                found = _record(key, parts)
            except Fault as fault:
                found = fault
            yield where, found


def members(path: Path) -> Iterator[tuple[str, Member | Fault]]:
    """("file:member", where its bytes lie), in the order of the tar; a damaged end is a fault, and the last.

    Raises:
        UserError: it is compressed, or no tar.
    """
    _refuse_compressed(path)
    name, num_bytes = str(path), path.stat().st_size
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                name = member.name
                if member.offset_data + member.size > num_bytes:
                    yield f"{path}:{name}", Fault("a damaged tar", f"the tar is cut short in the midst of {name!r}")
                    return
                if member.isreg() and not member.issparse():
                    yield f"{path}:{name}", Member(name, os.path.abspath(path), member.offset_data, member.size)
                tar.members = []  # it would keep them all
    except tarfile.ReadError as error:
        if name == str(path):
            raise UserError(f"cannot read {path}: not a tar ({error})") from None
        yield f"{path}:{name}", Fault("a damaged tar", f"the tar is damaged after {name!r} ({error})")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None


def _refuse_compressed(path: Path) -> None:
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    for magic, packer in _PACKERS.items():
        if head.startswith(magic):
            raise UserError(f"{path} is compressed ({packer}), so no clip can be found in it by its place: unpack it")


def _key(member: Member | Fault) -> str:
    """WebDataset's: everything up to the first dot of the last part."""
    if isinstance(member, Fault):
        return "damaged"
    folder, _, name = member.name.rpartition("/")
    return f"{folder}/{name.partition('.')[0]}".lstrip("/")


def _record(key: str, parts: list[Member | Fault]) -> Record:
    audio, record = [], {}
    for part in parts:
        if isinstance(part, Fault):
            raise part
        suffix = PurePosixPath(part.name).suffix.lower()
        if suffix in AUDIO_SUFFIXES:
            audio.append(part)
        elif suffix == ".json":
            record |= parse_object(stored_bytes(part.path, part.offset, part.size))
        elif (field := _TEXT_SUFFIXES.get(suffix[1:])) is not None:
            record.setdefault(field, stored_bytes(part.path, part.offset, part.size).decode("utf-8", "surrogateescape"))
    if len(audio) != 1:
        found = ", ".join(member.name for member in audio) or "none"
        raise Fault("not one audio member", f"{key!r} needs one audio member, found {found}")
    # Where the shard was made from is no longer where the audio is.
    record = {name: value for name, value in record.items() if name not in ("audio_path", "offset", "member")}
    place = {"audio_path": audio[0].path, "byte_offset": audio[0].offset, "num_bytes": audio[0].size}
    return with_our_keys({"id": key} | record | place)


LAYOUT = Layout("tar shards (WebDataset)", claims, rows)

"""Tar shards and HDF5: the audio comes along."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from components.data.manifest import Record, to_json, whole
from components.data.writers.audio_bytes import audio_bytes
from utils.imports import require


class TarWriter:
    """Pairs `<number>.<suffix>` and `<number>.json`, as WebDataset reads them; the id is in the JSON.

    Args:
        target: the tar.
        shard_size: clips in a tar; then there are several, `name-000000.tar`, `name-000001.tar`, ...
    """

    def __init__(self, target: Path, shard_size: int | None = None) -> None:
        self._target, self._shard_size = target, shard_size
        self._shards, self._tar, self._count = ExitStack(), None, 0

    def __enter__(self) -> Callable[[Record], None]:
        return self._write

    def __exit__(self, *error: Any) -> bool | None:
        if self._tar is not None:
            self._tar.close()
        return self._shards.__exit__(*error)  # all appear, or none

    def _write(self, record: Record) -> None:
        audio, suffix, rest = audio_bytes(record)
        if self._tar is None or (self._shard_size and self._count % self._shard_size == 0):
            self._next_shard()
        rest.pop("audio_path")
        _add(self._tar, f"{self._count:09d}{suffix}", audio)
        _add(self._tar, f"{self._count:09d}.json", to_json(rest))
        self._count += 1

    def _next_shard(self) -> None:
        if self._tar is not None:
            self._tar.close()
        path = self._target
        if self._shard_size:
            path = path.with_stem(f"{path.stem}-{self._count // self._shard_size:06d}")
        temporary = self._shards.enter_context(whole(path))
        self._tar = tarfile.open(temporary, "w:", format=tarfile.PAX_FORMAT)  # noqa: SIM115 (closed with the shard)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # no time and no owner: the same records make the same bytes
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
    tar.members = []  # it would keep them all


@contextmanager
def hdf5_writer(target: Path) -> Iterator[Callable[[Record], None]]:
    """A dataset of the encoded bytes of each clip, under its id; see `components.data.readers.hdf5`."""
    h5py = require("h5py", extra="data")
    with whole(target) as temporary, h5py.File(temporary, "w", libver="latest") as file:

        def write(record: Record) -> None:
            audio, _, rest = audio_bytes(record)
            rest.pop("audio_path")
            # A slash would be a group, and then `a` and `a/b` could not both be there.
            name = record["id"].replace("%", "%25").replace("/", "%2F")
            dataset = file.create_dataset(f"/{name}", data=np.frombuffer(audio, dtype=np.uint8))
            nested = {key: value for key, value in rest.items() if not _is_attribute(value)}
            for key, value in rest.items():
                if key not in nested:
                    dataset.attrs[key] = value
            if nested:
                dataset.attrs["json"] = json.dumps(nested)

        yield write


def _is_attribute(value: Any) -> bool:
    """Whether HDF5 keeps it as it is: a text without NUL of less than 60 kB, or a number."""
    if isinstance(value, str):
        return "\0" not in value and value.isprintable() and len(value) < 15_000
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 2**63

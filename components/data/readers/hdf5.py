"""HDF5: one dataset per clip, its fields as attributes.

A dataset is samples (floats in [-1, 1] or int16, `[T]` or `[C, T]`) or the bytes of an audio file (uint8 `[N]`). Its
attributes are the record's fields: `sample_rate`, `text`, ...; the attribute `json`, an object as text, may hold any of
them, and those that are lists or objects. A `sample_rate` for all may be the file's attribute, or its scalar dataset.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from components.data.faults import Fault, parse_object
from components.data.manifest import Record
from components.data.readers.headers import dataset_header
from components.data.readers.layout import Layout, Row
from utils.errors import UserError
from utils.imports import require

SUFFIXES = (".h5", ".hdf5", ".hdf")


def claims(path: Path) -> bool:
    """A file by its name, or a folder of such."""
    if path.is_dir():
        return any(file.suffix.lower() in SUFFIXES for file in path.iterdir())
    return path.is_file() and path.suffix.lower() in SUFFIXES


def rows(path: Path) -> Iterator[Row]:
    """One record per dataset, groups searched deeply; the id is the attribute `id`, or else the dataset's name."""
    h5py = require("h5py", extra="data")
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES) if path.is_dir() else [path]
    for name in files:
        try:
            with h5py.File(name) as file:
                for dataset in _datasets(file, h5py.Dataset):
                    try:
                        found: Record | Fault = _record(file, dataset)
                    except Fault as fault:
                        found = fault
                    yield f"{name}:{dataset.name}", found
        except OSError as error:
            raise UserError(f"cannot read {name}: {error}") from None


def _datasets(group: Any, kind: type) -> Iterator[Any]:
    for name in group:
        item = group[name]
        if not isinstance(item, kind):
            yield from _datasets(item, kind)
        elif item.name != "/sample_rate":
            yield item


def _record(file: Any, dataset: Any) -> Record:
    name = dataset.name.lstrip("/")
    fields = {key: _plain(value) for key, value in dataset.attrs.items()}
    if "json" in fields:
        fields |= parse_object(str(fields.pop("json")).encode())
    record = {"id": name} | fields | {"audio_path": os.path.abspath(file.filename), "member": name}
    if "duration" not in record or "sample_rate" not in record:
        header = dataset_header(file, dataset)
        record["sample_rate"] = header.sample_rate
        record.setdefault("duration", round(header.num_samples / header.sample_rate, 6))
    return record


def _plain(value: Any) -> Any:
    """An attribute as JSON knows it."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    return value.tolist() if hasattr(value, "tolist") else value


LAYOUT = Layout("HDF5: a dataset per clip", claims, rows)

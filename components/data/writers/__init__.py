"""Records to a collection of another layout, one by one.

A writer is a context manager: `with WRITERS["csv"](target) as write:` gives a function that takes a record, and what
was written is there, whole, when the block ends well. A layout is one function and one line in `WRITERS`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from components.data.manifest import Record
from components.data.writers.containers import TarWriter, hdf5_writer
from components.data.writers.kaldi import kaldi_writer
from components.data.writers.lhotse_cuts import lhotse_writer
from components.data.writers.text import csv_writer, jsonl_writer

__all__ = ["SUFFIXES", "WRITERS"]

WRITERS: dict[str, Callable[..., AbstractContextManager[Callable[[Record], None]]]] = {
    "jsonl": jsonl_writer,
    "lhotse": lhotse_writer,
    "csv": csv_writer,
    "tar": TarWriter,
    "hdf5": hdf5_writer,
    "kaldi": kaldi_writer,
}

# How a file of each layout is called; a folder has no suffix.
SUFFIXES = {"jsonl": ".jsonl", "lhotse": ".jsonl.gz", "csv": ".csv", "tar": ".tar", "hdf5": ".h5", "kaldi": ""}

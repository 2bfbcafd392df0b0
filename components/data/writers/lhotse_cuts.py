"""Lhotse's manifest of cuts, `cuts.jsonl.gz`; made by the library."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from components.data.faults import Fault
from components.data.manifest import Record, manifest_writer
from components.data.readers.headers import header_of
from utils.imports import require

# Where Lhotse has a place for it; all other keys are the cut's `custom`.
_SPOKEN = ("text", "speaker", "language", "gender")
_PLACE = {"id", "audio_path", "duration", "sample_rate", "offset", "channel", *_SPOKEN}


@contextmanager
def lhotse_writer(target: Path) -> Iterator[Callable[[Record], None]]:
    """One cut a line: a MonoCut, or a MultiCut where all channels of a file are meant.

    Channels and the length of the whole file come from its header.
    """
    require("lhotse", extra="data")
    with manifest_writer(target) as write:
        yield lambda record: write(to_cut(record).to_dict())


def to_cut(record: Record) -> Any:
    """A record as a `lhotse.MonoCut` or `MultiCut`.

    Raises:
        Fault: its audio cannot be opened, ends before the record does, or lies inside of a container.
    """
    from lhotse import AudioSource, MonoCut, MultiCut, Recording, SupervisionSegment

    if "member" in record or "byte_offset" in record:
        raise Fault("audio in a container", "Lhotse's cuts name no audio inside of a tar or HDF5 file")
    header = header_of(record)
    channels = list(range(header.num_channels))
    start, duration = float(record.get("offset", 0)), _within(record, header)
    path = os.path.abspath(record["audio_path"])
    recording = Recording(
        id=record["id"],
        sources=[AudioSource(type="file", channels=channels, source=path)],
        sampling_rate=header.sample_rate,
        num_samples=header.num_samples,
        duration=header.num_samples / header.sample_rate,
        channel_ids=channels,
    )
    channel = record.get("channel", 0 if len(channels) == 1 else channels)
    spoken = {key: _text(record[key]) for key in _SPOKEN if key in record}
    supervision = SupervisionSegment(
        id=record["id"], recording_id=record["id"], start=0.0, duration=duration, channel=channel, **spoken
    )
    kind = MultiCut if isinstance(channel, list) else MonoCut
    return kind(
        id=record["id"],
        start=start,
        duration=duration,
        channel=channel,
        recording=recording,
        supervisions=[supervision] if spoken else [],
        custom={key: value for key, value in record.items() if key not in _PLACE} or None,
    )


def _within(record: Record, header: Any) -> float:
    """The record's duration, cut back to the file's end where rounding put it a few samples beyond."""
    left = header.num_samples / header.sample_rate - record.get("offset", 0)
    if record["duration"] > left + 0.01:
        where = f"{left:.3f} s of {record['audio_path']}"
        raise Fault("ends too early", f"the record is {record['duration']} s long, but {where} are left")
    return min(float(record["duration"]), left)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)

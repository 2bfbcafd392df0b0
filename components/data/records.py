"""Millions of records in little memory."""

from __future__ import annotations

import json
import operator
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np

from components.data.manifest import Record, to_json


class Records(Sequence[Record]):
    """Records as JSON bytes in one buffer: a record becomes a dict when it is asked for.

    Workers that are forked share the buffer, and a pickle of it is a copy of three arrays. A slice or a selection is a
    view: it copies no bytes, and takes its own bytes alone along when it is pickled.

    Args:
        buffer: uint8 `[num_bytes]`.
        starts, ends: int64 `[N]`, where in the buffer each record lies.
        durations: float64 `[N]`, seconds; NaN where a record has none.
    """

    def __init__(self, buffer: np.ndarray, starts: np.ndarray, ends: np.ndarray, durations: np.ndarray) -> None:
        self._buffer, self._starts, self._ends, self._durations = buffer, starts, ends, durations
        for values in (buffer, durations):
            values.flags.writeable = False

    @classmethod
    def from_iterable(cls, records: Iterable[Record]) -> Records:
        """Take in records one by one; only their bytes are kept."""
        buffer, ends, durations = bytearray(), array("q"), array("d")
        for record in records:
            buffer += to_json(record)
            ends.append(len(buffer))
            durations.append(record.get("duration", np.nan))
        stops = np.array(ends, dtype=np.int64)
        starts = np.zeros_like(stops)
        starts[1:] = stops[:-1]
        return cls(np.frombuffer(buffer, dtype=np.uint8), starts, stops, np.array(durations, dtype=np.float64))

    @property
    def durations(self) -> np.ndarray:
        """Seconds of each record, float64 `[N]`, not to be written to; NaN where unknown."""
        return self._durations

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""
        return sum(values.nbytes for values in (self._buffer, self._starts, self._ends, self._durations))

    def select(self, indices: Sequence[int] | np.ndarray) -> Records:
        """The records at `indices`, in their order; a mask of booleans does as well."""
        indices = np.asarray(indices)
        if not indices.size:
            indices = indices.astype(np.int64)
        return Records(self._buffer, self._starts[indices], self._ends[indices], self._durations[indices])

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> Records: ...
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Records(self._buffer, self._starts[index], self._ends[index], self._durations[index])
        index = operator.index(index)
        return json.loads(self._buffer[self._starts[index] : self._ends[index]].tobytes())

    def __iter__(self) -> Iterator[Record]:
        for start, end in zip(self._starts.tolist(), self._ends.tolist()):
            yield json.loads(self._buffer[start:end].tobytes())

    def __repr__(self) -> str:
        return f"Records({len(self)}, {np.nansum(self._durations) / 3600:.2f} h)"

    def __getstate__(self) -> tuple[np.ndarray, ...]:
        buffer, sizes = self._buffer, self._ends - self._starts
        ends = np.cumsum(sizes)
        if sizes.sum() >= len(buffer):
            return buffer, self._starts, self._ends, self._durations
        parts = [buffer[start:end] for start, end in zip(self._starts.tolist(), self._ends.tolist())]
        own = np.concatenate(parts) if parts else buffer[:0]
        return own, ends - sizes, ends, np.ascontiguousarray(self._durations)

    def __setstate__(self, state: tuple[np.ndarray, ...]) -> None:
        self.__init__(*state)

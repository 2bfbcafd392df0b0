"""What a condition is made of, and what stands in its place.  Shapes: T samples, L frames, C channels, S symbols."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from utils.errors import BadSample, UserError

# Kinds of streams; a number is that many channels of frames.
Kind = str | int
_EMPTY = {
    "text": lambda: "",
    "waveform": lambda: torch.zeros(1, 0),
    "frames": lambda: torch.zeros(0),
    "symbols": lambda: torch.zeros(0, dtype=torch.int64),
}


@dataclass(frozen=True, slots=True)
class Clip:
    """A target and what is known of it.

    Attributes:
        waveform: `[1, T]`, the target as it will be in the batch.
        sample_rate: Hz.
        record: of the manifest.
        start: second of the recording at which the target begins.
        folder: what paths of the record are relative to.
    """

    waveform: Tensor
    sample_rate: int
    record: Mapping[str, Any]
    start: float = 0.0
    folder: Path = Path()

    @property
    def seconds(self) -> float:
        """How long the target is."""
        return self.waveform.shape[-1] / self.sample_rate

    def get(self, field: str) -> Any:
        """`field` of the record, or of its labels.

        Raises:
            BadSample: there is no such field, or nothing but blanks in it; names it.
        """
        value = self.record.get(field)
        if value is None:
            value = (self.record.get("labels") or {}).get(field)
        if value is None or (isinstance(value, str) and not value.strip()):
            raise self.bad(f"it has no {field!r}", f"no {field}")
        return value

    def bad(self, detail: str, reason: str) -> BadSample:
        """The error that leaves this clip out."""
        identifier = self.record.get("id")
        source = str(self.record.get("audio_path"))
        return BadSample(f"{identifier} can not be used: {detail}", sample_id=identifier, source=source, reason=reason)


class ConditionMaker(Protocol):
    """Makes streams of conditions from a clip; one that is left out, or None, is absent from this clip.

    Attributes:
        kinds: stream -> "text", "waveform" (`[1, T]`), "frames" (`[L]`), a number C (frames `[L, C]`), or "symbols"
            (int64 `[S]`).
    """

    kinds: Mapping[str, Kind]

    def __call__(self, clip: Clip) -> dict[str, Any]: ...


def absent(kind: Kind) -> Any:
    """What stands in the place of an absent stream: no text, no samples, no frames.

    Raises:
        UserError: there is no such kind.
    """
    if isinstance(kind, int) and not isinstance(kind, bool) and kind > 0:
        return torch.zeros(0, kind)
    if kind not in _EMPTY:
        raise UserError(f"streams: {kind!r} is neither {', '.join(_EMPTY)} nor a number of channels")
    return _EMPTY[kind]()


def num_frames(num_samples: int, hop_length: int) -> int:
    """Latent frames of so many samples, as the autoencoders count them: the last may be part silence; at least one."""
    return max(1, -(-num_samples // hop_length))

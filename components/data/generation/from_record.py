"""Conditions that a manifest brings: words, captions, phonemes, scores, features.

Shapes: S symbols, L frames, F features. What has a time is cut with the target.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from components.data.generation.clip import Clip
from utils.errors import UserError

# Of a symbol at the edge of a crop so much must be left, in seconds.
_SHORTEST = 1e-4


class RecordText:
    """A field of the record as it is: the words to say, a caption.

    Args:
        field: of the record, or of its labels.
        stream: its name; that of the field by default.
        optional: a record without it lacks the condition, instead of being unusable.
    """

    def __init__(self, field: str, stream: str | None = None, optional: bool = False) -> None:
        self.field, self.stream, self.optional = field, stream or field, optional
        self.kinds = {self.stream: "text"}

    def __call__(self, clip: Clip) -> dict[str, Any]:
        known = clip.record.get(self.field) or (clip.record.get("labels") or {}).get(self.field)
        return {} if self.optional and not known else {self.stream: str(clip.get(self.field))}


class Phonemes:
    """What is said, phoneme by phoneme, as ids int64 `[S]`, and how long each takes, in seconds `[S]`.

    A record has `phonemes`, a list or a string with spaces between, and `phoneme_durations`, seconds of each in order
    from the recording's beginning. The durations of a crop are those of the crop; what the target has behind the last
    of them, the silence of a canvas, is added to no phoneme.

    Args:
        symbols: all phonemes; the id of one is its place here.
        durations: False where the records have none: then there is no stream of them, and a crop can not be made.

    Raises:
        UserError: there is no symbol, or one comes twice.
    """

    def __init__(self, symbols: Sequence[str], durations: bool = True) -> None:
        self.ids = {str(symbol): i for i, symbol in enumerate(symbols)}
        if not self.ids or len(self.ids) != len(symbols):
            raise UserError(f"Phonemes: symbols must be some, each once, not {list(symbols)}")
        self.durations = durations
        self.kinds: Mapping[str, str] = {"phonemes": "symbols"} | ({"phoneme_durations": "frames"} if durations else {})

    def __call__(self, clip: Clip) -> dict[str, Any]:
        ids = self.of(clip)
        if not self.durations:
            if clip.start or clip.seconds < clip.record["duration"] - 0.05:
                raise clip.bad("a crop of phonemes needs their durations", "crop of phonemes without durations")
            return {"phonemes": ids}
        durations = _numbers(clip, "phoneme_durations", len(ids))
        kept, durations = _cut(durations, clip.start, clip.seconds)
        return {"phonemes": ids[kept], "phoneme_durations": durations}

    def of(self, clip: Clip) -> Tensor:
        """Ids of all phonemes of the record, int64 `[S]`.

        Raises:
            BadSample: it has none, or one that is no symbol.
        """
        said = clip.get("phonemes")
        names = said.split() if isinstance(said, str) else [str(name) for name in said]
        unknown = next((name for name in names if name not in self.ids), None)
        if unknown is not None or not names:
            detail = "it has no phonemes" if unknown is None else f"its phoneme {unknown!r} is none of the symbols"
            raise clip.bad(detail, "no phonemes" if unknown is None else f"unknown phoneme {unknown}")
        return torch.tensor([self.ids[name] for name in names])


class Score(Phonemes):
    """What is sung: phonemes, and of each its note, whether it continues the one before, and how long the note lasts.

    A record has `phonemes`, `notes` (MIDI numbers, 0 for a rest), `slurs` (1: sung on the vowel before) and
    `note_durations` (seconds), all of one length; optionally `phoneme_durations`. Streams have the same names.

    Args:
        symbols, durations: as in `Phonemes`. Scores are not cropped: note durations are those of the whole recording.

    Raises:
        UserError: as `Phonemes`.
    """

    def __init__(self, symbols: Sequence[str], durations: bool = True) -> None:
        super().__init__(symbols, durations)
        self.kinds = {**self.kinds, "notes": "symbols", "slurs": "symbols", "note_durations": "frames"}

    def __call__(self, clip: Clip) -> dict[str, Any]:
        made = super().__call__(clip)
        size = len(made["phonemes"])
        if clip.start or size != len(self.of(clip)):
            raise clip.bad("a score can not be cropped", "crop of a score")
        whole = {name: _numbers(clip, name, size).round().long() for name in ("notes", "slurs")}
        return {**made, **whole, "note_durations": _numbers(clip, "note_durations", size)}


class StoredFeatures:
    """Features that were computed before, such as those of a video or a piano roll: float32 `[L, F]`, from a file.

    The record names an `.npy` file, or a `.safetensors` file with the tensor's name in `features_key`, as
    `python -m components.data extract` writes them; of a crop no more than its frames are read.

    Args:
        num_features: F.
        frame_rate: frames a second, by which they are cut with the target.
        field: of the record; relative paths are relative to the manifest's folder.
        stream: its name.

    Raises:
        UserError: `frame_rate` is not above 0.
    """

    def __init__(
        self, num_features: int, frame_rate: float, field: str = "features_path", stream: str = "features"
    ) -> None:
        if frame_rate <= 0:
            raise UserError(f"StoredFeatures: frame_rate must be above 0, not {frame_rate}")
        self.num_features, self.frame_rate, self.field, self.stream = num_features, frame_rate, field, stream
        self.kinds = {stream: num_features}

    def __call__(self, clip: Clip) -> dict[str, Any]:
        path = clip.folder / clip.get(self.field)
        key = clip.get("features_key") if path.suffix == ".safetensors" else None
        first = round(clip.start * self.frame_rate)
        last = first + max(1, round(clip.seconds * self.frame_rate))
        try:
            frames = _read(path, key, first, last)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else None
            raise clip.bad(f"cannot read {path}: {reason or error}", "unreadable features") from None
        if frames.ndim != 2 or frames.shape[1] != self.num_features:
            wanted = f"[L, {self.num_features}]"
            raise clip.bad(f"{path} holds features {list(frames.shape)}, not {wanted}", "features of another shape")
        if not len(frames):
            raise clip.bad(f"{path} ends before {clip.start} s", "features end too early")
        return {self.stream: frames}


def _read(path: Path, key: str | None, first: int, last: int) -> Tensor:
    """Rows `first` to `last` of the tensor `key` of a `.safetensors` file, or of an `.npy` file, which has one."""
    if key is None:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)[first:last]
        return torch.from_numpy(np.array(rows, dtype=np.float32))
    try:
        with safe_open(path, "pt") as file:
            return file.get_slice(key)[first:last].float()
    except SafetensorError as error:
        raise ValueError(str(error)) from None


def _numbers(clip: Clip, field: str, size: int) -> Tensor:
    """A field of `size` numbers, none below 0; float32 `[S]`."""
    given = clip.get(field)
    try:
        numbers = torch.tensor([float(number) for number in given])
    except (TypeError, ValueError):
        raise clip.bad(f"its {field!r} are no numbers", f"bad {field}") from None
    if len(numbers) != size or bool((numbers < 0).any()) or not bool(numbers.isfinite().all()):
        detail = f"its {field!r} are {len(numbers)} numbers, which should be {size} and none below 0"
        raise clip.bad(detail, f"bad {field}")
    return numbers


def _cut(durations: Tensor, start: float, seconds: float) -> tuple[Tensor, Tensor]:
    """Which symbols are heard between `start` and `start + seconds`, int64 `[K]`, and how long, `[K]`."""
    ends = durations.double().cumsum(0)
    begins = ends - durations.double()
    inside = ends.clamp(max=start + seconds) - begins.clamp(min=start)
    kept = torch.nonzero(inside > _SHORTEST).flatten()
    return kept, inside[kept].float()

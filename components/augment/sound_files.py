"""Collections of noises and impulse responses: what can be read of them, and reading a piece.  Shapes: T samples."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import soundfile

from components.data.audio import resample
from components.data.faults import Fault
from components.data.manifest import AUDIO_SUFFIXES, read_manifest, resolve_audio_path
from components.data.readers.headers import header_of
from components.data.stored import why_unreadable
from utils.errors import UserError

log = logging.getLogger(__name__)

_NUM_NAMED = 20

Paths = str | Path | Sequence[str | Path]


@dataclass(frozen=True, slots=True)
class Sound:
    """A stretch of a file.

    Attributes:
        path: the file.
        sample_rate: Hz of the file.
        num_channels: of the file.
        first_frame, num_frames: the stretch, in samples of one channel.
        channel: the only one to use; None for any.
    """

    path: str
    sample_rate: int
    num_channels: int
    first_frame: int
    num_frames: int
    channel: int | None = None


def find_sounds(paths: Paths, what: str) -> list[Sound]:
    """All that can be opened among files, folders (searched deeply) and manifests (`.jsonl`), in sorted order.

    Only headers are read. What can not be opened, or holds nothing, is left out and named in one warning.

    Args:
        what: what the sounds are, in the plural, for messages.

    Raises:
        UserError: a path does not exist, a manifest is unusable, or nothing is left.
    """
    sounds, refused = [], []
    for stretch in sorted(set(_stretches(paths, what)), key=lambda s: (s.path, s.start, s.seconds or 0.0)):
        try:
            sounds.append(_open(stretch))
        except UserError as error:
            refused.append(str(error))
    _name_refused(refused, what)
    if not sounds:
        raise UserError(f"no {what} that can be read in {_listed(paths)}")
    return sounds


def read_sound(sound: Sound, channel: int, sample_rate: int) -> np.ndarray:
    """Decode a stretch by seeking and resample it; `[T]` float32 with at least one sample.

    Args:
        channel: which to take.
        sample_rate: Hz wanted.

    Raises:
        UserError: it can not be decoded, is empty, or holds NaN or infinite samples.
    """
    try:
        with soundfile.SoundFile(sound.path) as file:
            file.seek(sound.first_frame)
            samples = file.read(sound.num_frames, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        raise _unreadable(sound.path, error) from None
    if not len(samples):
        raise UserError(f"{sound.path}: it ends before {sound.first_frame / sound.sample_rate:.2f} s")
    picked = np.ascontiguousarray(samples[:, channel])
    if not np.isfinite(picked).all():
        raise UserError(f"{sound.path}: it holds NaN or infinite samples")
    return resample(picked, sound.sample_rate, sample_rate)


def check_decodes(path: str) -> None:
    """Decode a file from its beginning to its end.

    Raises:
        UserError: that is not possible, or it holds nothing, less than its header says, or NaN.
    """
    sound = _open(_Stretch(path))
    num_frames = 0
    try:
        for block in soundfile.blocks(path, blocksize=1 << 16, dtype="float32"):
            num_frames += len(block)
            if not np.isfinite(block).all():
                raise UserError(f"{path}: it holds NaN or infinite samples")
    except (soundfile.LibsndfileError, OSError) as error:
        raise _unreadable(path, error) from None
    if num_frames < sound.num_frames:
        raise UserError(f"{path}: {num_frames} samples, where its header says {sound.num_frames}")


def keep_decodable(paths: Iterable[str], what: str) -> list[str]:
    """The files among `paths` that decode to their end; the others are named in one warning.

    Raises:
        UserError: none is left.
    """
    paths, kept, refused = list(paths), [], []
    for path in paths:
        try:
            check_decodes(path)
            kept.append(path)
        except UserError as error:
            refused.append(str(error))
    _name_refused(refused, what)
    if not kept:
        raise UserError(f"none of the {len(paths)} {what} can be read, e.g. {refused[0] if refused else 'none given'}")
    return kept


@cache
def warn_once(message: str) -> None:
    """Log a warning, once in a process."""
    log.warning(message)


# ------------------------------------------------------------------------------------------------------------- finding


@dataclass(frozen=True, slots=True)
class _Stretch:
    """What is asked for: a file, or `seconds` (None: all) from `start` s on."""

    path: str
    start: float = 0.0
    seconds: float | None = None
    channel: int | None = None


def _stretches(paths: Paths, what: str) -> Iterable[_Stretch]:
    for path in [Path(paths)] if isinstance(paths, (str, Path)) else map(Path, paths):
        if path.is_dir():
            yield from (
                _Stretch(str(p)) for p in path.rglob("*") if p.suffix.lower() in AUDIO_SUFFIXES and not p.is_dir()
            )
        elif path.suffix == ".jsonl":
            for record in read_manifest(path):
                seconds = record["duration"] if "offset" in record else None
                audio_path = str(resolve_audio_path(record, path))
                yield _Stretch(audio_path, record.get("offset", 0.0), seconds, record.get("channel"))
        elif path.is_file():
            yield _Stretch(str(path))
        else:
            raise UserError(f"{path}, which should hold {what}, does not exist")


def _open(stretch: _Stretch) -> Sound:
    try:
        num_frames, rate, num_channels = header_of({"audio_path": stretch.path})
    except Fault as fault:
        raise UserError(fault.detail) from None
    if stretch.channel is not None and stretch.channel >= num_channels:
        raise UserError(f"{stretch.path}: it has no channel {stretch.channel}")
    sound = Sound(stretch.path, rate, num_channels, 0, num_frames, stretch.channel)
    if stretch.start or stretch.seconds is not None:
        first = round(stretch.start * rate)
        rest = num_frames - first
        wanted = rest if stretch.seconds is None else min(rest, round(stretch.seconds * rate))
        sound = replace(sound, first_frame=first, num_frames=wanted)
    if sound.num_frames <= 0:
        raise UserError(f"{stretch.path}: it holds no samples there")
    return sound


def _name_refused(refused: list[str], what: str) -> None:
    if not refused:
        return
    more = f"; and {len(refused) - _NUM_NAMED} more" if len(refused) > _NUM_NAMED else ""
    log.warning("%d %s left out: %s%s", len(refused), what, "; ".join(refused[:_NUM_NAMED]), more)


def _listed(paths: Paths) -> str:
    return str(paths) if isinstance(paths, (str, Path)) else ", ".join(map(str, paths))


def _unreadable(path: str, error: Exception) -> UserError:
    return UserError(f"cannot read {path}: {why_unreadable(path, error)[1]}")

"""Files of clips that were cut out of YouTube videos: everyone who downloaded them named them in a way of their own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path


def find_clip(files: Mapping[str, Path], video: str, start: float, end: float | None, *more: str) -> Path | None:
    """The file of a clip among `files` (name without suffix -> path), by the names that are in use.

    Args:
        video: YouTube's id of the video.
        start, end: seconds of the clip in it.
        more: further names without suffix to look for, last.
    """
    names = [*_names(video, start, end), *more]
    return next((files[name] for name in names if name in files), None)


def _names(video: str, start: float, end: float | None) -> Iterator[str]:
    for name in (video, f"Y{video}"):
        for at in _times(start):
            for to in _times(end) if end is not None else ():
                yield f"{name}_{at}_{to}"
            yield f"{name}_{at}"
    yield video
    yield f"Y{video}"


def _times(seconds: float) -> Iterable[str]:
    """`30`, `30.000`, `30.0` and milliseconds, `30000`."""
    return f"{seconds:g}", f"{seconds:.3f}", f"{seconds:.1f}", str(round(seconds * 1000))

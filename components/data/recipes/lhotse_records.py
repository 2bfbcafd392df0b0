"""What Lhotse's recipes return, as records of our manifests.

A recipe returns `{"recordings": ..., "supervisions": ...}` for each part of its corpus, in mappings of one or two
levels (part, or language and part) or in none, a pair of the two, or cuts; a few return nothing and only write files.
One supervision becomes one record; where a part has none at all, one recording does.
"""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from components.data.manifest import Record
from utils.errors import UserError

logger = logging.getLogger(__name__)

WHOLE = "all"  # the part of a corpus that comes in one piece

# What holds the segments of a part; the Broadcast News recipe calls them otherwise.
_SEGMENTS = ("supervisions", "segments")
_FILE = re.compile(r"(?P<before>.*?)[-_]?(?P<kind>recordings|supervisions|cuts)(?P<after>[-_].*)?\.jsonl(\.gz)?")


def parts_of(manifests: Any, folder: Path | None = None) -> dict[str, list[Record]]:
    """Part -> records, of what a `prepare_<corpus>` returned; the parts of a language are called `<language>-<part>`.

    Args:
        folder: where the recipe wrote its manifests; read where it returned none.

    Raises:
        UserError: a recording is no plain file, or is changed on reading: such manifests stay with Lhotse.
    """
    found = dict(_parts(manifests, ()))
    if not any(found.values()) and folder is not None and folder.is_dir():
        found = dict(_parts(_read_folder(folder), ()))
    return found


def _parts(node: Any, path: tuple[str, ...]) -> Iterator[tuple[str, list[Record]]]:
    name = "-".join(path) or WHOLE
    if isinstance(node, tuple) and len(node) == 2:
        node = {"recordings": node[0], "supervisions": node[1]}
    if isinstance(node, Mapping):
        if "recordings" in node:
            segments = next((node[key] for key in _SEGMENTS if node.get(key) is not None), None)
            yield name, list(_of_recordings(node["recordings"], segments))
        else:
            for key, value in node.items():
                yield from _parts(value, path if key == "cuts" else (*path, str(key)))
    elif _is_cuts(node):
        yield name, [_of_cut(cut) for cut in node]


def _is_cuts(node: Any) -> bool:
    return type(node).__name__ == "CutSet"


def _read_folder(folder: Path) -> dict[str, dict[str, Any]]:
    from lhotse import load_manifest_lazy

    parts: dict[str, dict[str, Any]] = defaultdict(dict)
    for path in sorted(folder.rglob("*.jsonl*")):
        if match := _FILE.fullmatch(path.name):
            name = f"{match['before']}{match['after'] or ''}".strip("-_") or WHOLE
            parts[name][match["kind"]] = load_manifest_lazy(path)
    return {name: part.get("cuts", part) for name, part in parts.items()}


def _of_recordings(recordings: Iterable[Any], supervisions: Iterable[Any] | None) -> Iterator[Record]:
    by_id = {recording.id: recording for recording in recordings}
    spoken = set()
    for supervision in supervisions or ():
        recording = by_id.get(supervision.recording_id)
        if recording is None:
            raise UserError(f"Lhotse's supervision {supervision.id} names no recording, {supervision.recording_id!r}")
        spoken.add(recording.id)
        channel = supervision.channel
        place = _place(recording, supervision.start, supervision.duration, channel)
        yield {"id": supervision.id, **place, **_known(supervision)}
    if not spoken:
        for recording in by_id.values():
            yield {"id": recording.id, **_place(recording, 0.0, recording.duration, None)}
    elif len(spoken) < len(by_id):
        logger.info("%d of %d recordings have no supervision: left aside", len(by_id) - len(spoken), len(by_id))


def _of_cut(cut: Any) -> Record:
    """A cut of one recording; several supervisions become one text."""
    if not getattr(cut, "has_recording", False) or not hasattr(cut, "recording"):
        raise UserError(
            f"the cut {cut.id} is mixed of several recordings, which our manifests cannot say: "
            "save it first (CutSet.save_audios), or read the cuts as they are"
        )
    supervisions = list(cut.supervisions)
    fields = _known(supervisions[0]) if supervisions else {}
    texts = [supervision.text for supervision in supervisions if supervision.text]
    if texts:
        fields["text"] = " ".join(texts)
    return {"id": cut.id, **_place(cut.recording, cut.start, cut.duration, cut.channel), **fields}


def _place(recording: Any, start: float, duration: float, channel: Any) -> Record:
    """Which samples of which file; `channel` is one, several, or None for all."""
    if recording.transforms:
        changes = str(recording.transforms)[:120]
        raise UserError(f"Lhotse changes the recording {recording.id} on reading, which no manifest says: {changes}")
    wanted = [channel] if isinstance(channel, int) else list(channel or ())
    source = next((s for s in recording.sources if set(wanted) & set(s.channels)), recording.sources[0])
    if source.type != "file":
        raise UserError(f"the recording {recording.id} is no file but a {source.type} ({str(source.source)[:80]})")
    place: Record = {
        "audio_path": str(Path(source.source).absolute()),
        "duration": round(float(duration), 6),
        "sample_rate": int(recording.sampling_rate),
    }
    if start > 0 or duration < recording.duration - 1 / recording.sampling_rate:
        place["offset"] = round(float(start), 6)
    inside = [i for i, number in enumerate(source.channels) if number in wanted]
    if 0 < len(inside) < len(source.channels):
        place["channel"] = inside[0]
    if len(wanted) > max(1, len(inside)):
        place["channels"] = wanted  # of an array of microphones: the file is the first one's
    return place


def _known(supervision: Any) -> Record:
    """What Lhotse knows of a segment, by our names; its own `custom` values keep theirs."""
    known = {
        "text": supervision.text,
        "speaker": supervision.speaker,
        "language": supervision.language,
        "gender": supervision.gender,
    }
    known |= {key: value for key, value in (supervision.custom or {}).items() if key not in known and _is_plain(value)}
    for kind, items in (supervision.alignment or {}).items():
        known[f"{kind}_times"] = [[item.symbol, item.start, item.duration] for item in items]
    return {key: value for key, value in known.items() if value is not None}


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(entry) for key, entry in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (str, int, float, bool))

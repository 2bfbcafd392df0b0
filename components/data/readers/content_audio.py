"""Two files joined by `audio_id`: what a clip is about, and where it lies (UniFlow-Audio, AccelHydra)."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from components.data.faults import Fault
from components.data.manifest import Record
from components.data.readers.aliases import with_our_keys
from components.data.readers.jsonl import locate, objects
from components.data.readers.layout import Layout, Row, absolute
from utils.errors import UserError

logger = logging.getLogger(__name__)

FILES = {"content": "content.jsonl", "audio": "audio.jsonl", "condition": "condition.jsonl"}
# Contents that are files themselves.
_PATHS = ("audio", "low_sr_audio", "noisy_speech", "video", "midi", "condition")
_HDF5 = (".h5", ".hdf5")


def claims(path: Path) -> bool:
    """A folder with both files."""
    return (path / FILES["content"]).is_file() and (path / FILES["audio"]).is_file()


def rows(path: Path | Mapping[str, str | Path], id_key: str = "audio_id") -> Iterator[Row]:
    """One record per line of the contents, in their order; the audio's lines are held in memory.

    A clip that has several contents is there several times: as `id`, `id#2`, `id#3`, ...

    Args:
        path: the folder of `content.jsonl`, `audio.jsonl` and maybe `condition.jsonl`, or `{"content": file, "audio":
            file, "condition"?: file}`.
        id_key: what the lines are joined on.
    """
    files, bad = _files(path), []
    audio = _by_id(files["audio"], id_key, bad)
    condition = _by_id(files["condition"], id_key, bad) if "condition" in files else {}
    yield from bad
    times: Counter[str] = Counter()
    for where, found in objects(files["content"]):
        if isinstance(found, Fault):
            yield where, found
            continue
        identifier = str(found.pop(id_key, None))
        if identifier not in audio:
            yield where, Fault(f"no audio for its {id_key}", f"{id_key} {identifier!r} is not in {files['audio']}")
            continue
        times[identifier] += 1
        name = identifier if times[identifier] == 1 else f"{identifier}#{times[identifier]}"
        contents = _with_paths(found, files["content"])
        if identifier in condition:
            contents = _with_paths(condition[identifier], files["condition"]) | contents
        sound = _sound(audio[identifier], identifier, files["audio"])
        yield where, sound if isinstance(sound, Fault) else sound | contents | {"id": name}
    if unused := len(audio) - len(times):
        logger.warning("%s: %d of %d clips have no content, and are left out", files["audio"], unused, len(audio))


def _files(path: Path | Mapping[str, str | Path]) -> dict[str, Path]:
    if not isinstance(path, Mapping):
        return {name: path / file for name, file in FILES.items() if (path / file).is_file()}
    if not {"content", "audio"} <= path.keys() <= FILES.keys():
        raise UserError(f"a joined source has the keys content, audio and maybe condition, not {', '.join(path)}")
    return {name: Path(file) for name, file in path.items()}


def _by_id(path: Path, id_key: str, bad: list[Row]) -> dict[str, Record]:
    """id -> the rest of its line; lines without one, and second ones, go to `bad`."""
    found: dict[str, Record] = {}
    for where, line in objects(path):
        if isinstance(line, Fault):
            bad.append((where, line))
        elif not isinstance(line.get(id_key), (str, int)):
            bad.append((where, Fault(f"no {id_key}", f"the key {id_key!r} is missing")))
        elif str(line[id_key]) in found:
            bad.append((where, Fault("duplicate id", f"{id_key} {line[id_key]!r} was used before")))
        else:
            found[str(line.pop(id_key))] = line
    return found


def _sound(line: Record, identifier: str, path: Path) -> Record | Fault:
    try:
        record = with_our_keys({"id": identifier, **line})
    except Fault as fault:
        return fault
    locate(record, absolute(path.parent, ""))
    if str(record.get("audio_path", "")).lower().endswith(_HDF5):
        record.setdefault("member", identifier)
    return record


def _with_paths(fields: Record, path: Path) -> Record:
    """`fields`; those that are files lie relative to `path`."""
    for key in _PATHS:
        if isinstance(fields.get(key), str) and "://" not in fields[key]:
            fields[key] = absolute(path.parent, fields[key])
    return fields


LAYOUT = Layout("content.jsonl and audio.jsonl, joined on audio_id", claims, rows)

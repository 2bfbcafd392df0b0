"""Other people's names for the keys of a record."""

from __future__ import annotations

from pathlib import PurePath

from components.data.faults import Fault
from components.data.manifest import Record

# Whoever writes these means ours.
_ALWAYS = {
    "text": ("transcript", "transcription"),
    "sample_rate": ("sampling_rate",),
    "speaker": ("spk_id", "client_id"),
    "language": ("lang", "locale"),
}
# These mean ours only where the line has no `audio_path`, and so is not ours: NeMo, FunASR, SpeechBrain, a table.
_FOREIGN = {
    "id": ("key", "utt_id", "utt", "ID"),
    "audio_path": ("audio_filepath", "source", "audio", "path", "wav", "file", "filename", "file_name"),
    "text": ("sentence", "wrd"),
}
_FBANK_FRAME_SECONDS = 0.01  # the unit of FunASR's `source_len`


def with_our_keys(record: Record, target_is_text: bool = True) -> Record:
    """`record` with its aliases renamed, in place of them.

    A line without `audio_path` and without an id is called by its path without the suffix, and by its offset; its
    `caption` is kept and is its text as well, where it has no other.

    Args:
        target_is_text: FunASR's `target` is the text; the column of a table is a class.
    """
    foreign = "audio_path" not in record
    if foreign:
        _rename(record, _FOREIGN)
        if target_is_text:
            _rename(record, {"text": ("target",)})
    _rename(record, _ALWAYS)
    if not foreign:
        return record
    if "text" not in record and "caption" in record:
        record["text"] = record["caption"]
    if "duration" not in record and "source_len" in record:
        record["duration"] = _seconds(record.pop("source_len"))
    if isinstance(record.get("id"), int) and not isinstance(record["id"], bool):
        record["id"] = str(record["id"])
    if "id" not in record and isinstance(path := record.get("audio_path"), str):
        record["id"] = _name_of(path, record.get("offset"))
    return record


def _rename(record: Record, names: dict[str, tuple[str, ...]]) -> None:
    for ours, theirs in names.items():
        if ours in record:
            continue
        for alias in theirs:
            if alias in record:
                record[ours] = record.pop(alias)
                break


def _seconds(frames: object) -> float:
    if not isinstance(frames, (int, float)) or isinstance(frames, bool):
        raise Fault("bad source_len", f"'source_len' has an unusable value, {frames!r} (frames of 10 ms)")
    return round(frames * _FBANK_FRAME_SECONDS, 2)


def _name_of(path: str, offset: object) -> str:
    name = path.removesuffix(PurePath(path).suffix)
    return f"{name}@{offset:.3f}" if isinstance(offset, (int, float)) and offset else name

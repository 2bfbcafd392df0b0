"""What can be wrong with one record of a collection."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

# No clip is longer than a day, and nothing records below 1 kHz or above 768 kHz: beyond that a number is damaged.
LONGEST_SECONDS = 24 * 3600
PLAUSIBLE_RATES = range(1_000, 768_001)

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


class Fault(Exception):
    """Why a record cannot be used.

    Attributes:
        reason: a few words that come back for every record of the kind, for counting.
        detail: one sentence about this record.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


def parse_object(line: bytes) -> dict[str, Any]:
    """The JSON object of a line.

    Raises:
        Fault: the line is not UTF-8, no JSON, no object, or holds Python's NaN or Infinity.
    """
    try:
        text = line.decode().rstrip("\r\n")
        record = _decode(text)
    except UnicodeDecodeError as error:
        raise Fault("not UTF-8", f"not UTF-8 (byte {error.start + 1} of the line; save the file as UTF-8)") from None
    except json.JSONDecodeError as error:
        cut = "" if line.endswith(b"\n") else "; the last line has no end: was the file cut short?"
        raise Fault("not valid JSON", f"not valid JSON ({error.msg} at column {error.colno}){cut}") from None
    except _NotFinite as error:
        # Most likely it is a key of ours, whose check says what is wanted there.
        if isinstance(record := json.loads(text), dict):
            check_record(record, required=())
        raise Fault("not a finite number", f"{error} is not JSON: write a number, or leave the key out") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, a thousand brackets
        raise Fault("not valid JSON", f"not valid JSON ({error})") from None
    if not isinstance(record, dict):
        kind = type(record).__name__
        raise Fault("no JSON object", f"expected a JSON object, found {kind}")
    return record


class _NotFinite(Exception):
    """NaN, Infinity or -Infinity, which Python writes and JSON does not know."""


def _refuse_constant(literal: str) -> Any:
    raise _NotFinite(literal)


_decode = json.JSONDecoder(parse_constant=_refuse_constant).decode


def check_record(record: dict[str, Any], required: Iterable[str] = ("id", "audio_path")) -> dict[str, Any]:
    """`record` itself: keys that we know have values of their kind; those that are null are taken out.

    Raises:
        Fault: a required key is missing, or a value is of the wrong type or implausible.
    """
    for key, check in _CHECKS.items():
        if key in record:
            if record[key] is None:
                del record[key]
            else:
                check(record, key)
    for key in required:
        if key not in record:
            raise Fault(f"no {key}", f"the key {key!r} is missing{_hint(key, record)}")
    if ("byte_offset" in record) != ("num_bytes" in record):
        raise Fault("half a byte range", "'byte_offset' and 'num_bytes' come together or not at all")
    return record


def missing_field(record: dict[str, Any], fields: Iterable[str]) -> str | None:
    """The first of `fields` that a record has not, or has nothing but blanks in."""
    for field in fields:
        value = record.get(field)
        if value is None or (isinstance(value, str) and not value.strip()):
            return field
    return None


def _hint(key: str, record: dict[str, Any]) -> str:
    found = get_close_matches(key, [name for name in record if name not in _CHECKS], n=1, cutoff=0.75)
    return f" (did you mean {key!r} by {found[0]!r}?)" if found else ""


@lru_cache(maxsize=4096)
def near_miss(key: str) -> str | None:
    """The key of ours that `key`, which is none, was probably meant to be."""
    if key in _CHECKS or key in _NEIGHBOURS:
        return None
    found = get_close_matches(key, _CHECKS, n=1, cutoff=0.85)
    return found[0] if found else None


def _unusable(record: dict[str, Any], key: str, wanted: str) -> Fault:
    shown = repr(record[key])
    shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
    return Fault(f"bad {key}", f"{key!r} has an unusable value, {shown} ({wanted})")


def _name(record: dict[str, Any], key: str) -> None:
    if not isinstance(record[key], str) or not record[key].strip():
        raise _unusable(record, key, "text is wanted")


def _path(record: dict[str, Any], key: str) -> None:
    _name(record, key)
    if _URL.match(record[key]):
        raise Fault("a URL", f"{key!r} is a URL, {record[key]!r}: fetch the file first")
    if "\0" in record[key]:
        raise _unusable(record, key, "a path")


def _text(record: dict[str, Any], key: str) -> None:
    if not isinstance(record[key], str):
        raise _unusable(record, key, "text is wanted")
    try:
        record[key].encode()
    except UnicodeEncodeError:
        raise Fault("not UTF-8", f"{key!r} is not UTF-8: {record[key]!a}") from None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _duration(record: dict[str, Any], key: str) -> None:
    seconds = record[key]
    if not _is_number(seconds):
        raise _unusable(record, key, "seconds, a number")
    if not (math.isfinite(seconds) and seconds > 0):
        raise Fault(f"bad {key}", f"{key!r} must be a positive number, not {seconds!r}")
    if seconds > LONGEST_SECONDS:
        raise Fault(
            f"bad {key}", f"{key!r} is implausible: {seconds!r} s are more than {LONGEST_SECONDS // 3600} hours"
        )


def _offset(record: dict[str, Any], key: str) -> None:
    seconds = record[key]
    if not _is_number(seconds):
        raise _unusable(record, key, "seconds, a number")
    if not (math.isfinite(seconds) and seconds >= 0):
        raise Fault(f"bad {key}", f"{key!r} must be 0 or a positive number, not {seconds!r}")


def _rate(record: dict[str, Any], key: str) -> None:
    rate = record[key]
    if isinstance(rate, float) and rate.is_integer():  # what passed through a table of floats
        rate = record[key] = int(rate)
    if not isinstance(rate, int) or isinstance(rate, bool):
        raise _unusable(record, key, "Hz, a whole number")
    if rate <= 0:
        raise Fault(f"bad {key}", f"{key!r} must be a positive number, not {rate!r}")
    if rate not in PLAUSIBLE_RATES:
        raise Fault(f"bad {key}", f"{key!r} is implausible: {rate} Hz")


def _whole_number(least: int) -> Callable[[dict[str, Any], str], None]:
    def check(record: dict[str, Any], key: str) -> None:
        if not isinstance(record[key], int) or isinstance(record[key], bool) or record[key] < least:
            raise _unusable(record, key, f"a whole number from {least} on")

    return check


def _labels(record: dict[str, Any], key: str) -> None:
    if not isinstance(record[key], dict):
        raise Fault(f"bad {key}", f"{key!r} must map targets to class names, not {record[key]!r}")
    for target, name in record[key].items():
        if not (name is None or isinstance(name, (str, int, float)) or _is_list_of_text(name)):
            raise Fault(f"bad {key}", f"{key!r} must map {target!r} to a class name, not {name!r}")


def _tags(record: dict[str, Any], key: str) -> None:
    if not _is_list_of_text(record[key]):
        raise _unusable(record, key, "a list of texts")


def _phonemes(record: dict[str, Any], key: str) -> None:
    if not isinstance(record[key], str) and not _is_list_of_text(record[key]):
        raise _unusable(record, key, "text, or a list of texts")


def _speaker(record: dict[str, Any], key: str) -> None:
    if not isinstance(record[key], str) and (not isinstance(record[key], int) or isinstance(record[key], bool)):
        raise _unusable(record, key, "a name or a whole number")


def _is_list_of_text(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


_CHECKS: dict[str, Callable[[dict[str, Any], str], None]] = {
    "id": _name,
    "audio_path": _path,
    "duration": _duration,
    "sample_rate": _rate,
    "offset": _offset,
    "channel": _whole_number(0),
    "byte_offset": _whole_number(0),
    "num_bytes": _whole_number(1),
    "member": _name,
    "text": _text,
    "caption": _text,
    "instruction": _text,
    "phonemes": _phonemes,
    "labels": _labels,
    "tags": _tags,
    "speaker": _speaker,
    "language": _text,
    "task": _text,
    "split": _text,
}

# Near our keys, and words of their own.
_NEIGHBOURS = {"label", "tag", "channels", "phoneme", "tasks", "splits", "languages", "speakers", "texts", "captions"}

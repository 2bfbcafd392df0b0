"""How a class is written down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

UNKNOWN = -100  # the class id of a clip that is not labelled; torch's losses leave it out


def numbered(labels: Mapping[str, Sequence[str]] | None) -> dict[str, dict[str, int]]:
    """Target -> class name -> class id, of target -> class names in order."""
    return {target: {str(name): i for i, name in enumerate(names)} for target, names in (labels or {}).items()}


def class_ids_of(record: Mapping[str, Any], numbers: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """Target -> class id of a record with `labels`; `UNKNOWN` where it has none, or one that `numbers` lack."""
    labels = record.get("labels", {})
    return {target: ids.get(str(labels.get(target)), UNKNOWN) for target, ids in numbers.items()}

"""The nearest valid name to a mistyped one."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(name: str, candidates: Iterable[str]) -> str | None:
    """The candidate that `name` was probably meant to be; None where nothing comes close."""
    candidates = sorted(candidates)
    if matches := get_close_matches(name, candidates, n=1, cutoff=0.6):
        return matches[0]
    by_lower = {candidate.lower(): candidate for candidate in candidates}
    matches = get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[matches[0]] if matches else None


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """` (did you mean 'x'?)`, or nothing."""
    found = nearest(name, candidates)
    return f" (did you mean '{found}'?)" if found else ""

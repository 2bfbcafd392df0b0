"""Does a plain YAML value fit a simple annotation? Only what is sure is refused."""

from __future__ import annotations

import inspect
import types
from typing import Any, Literal, Union, get_args, get_origin

_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


def mismatch(annotation: Any, value: Any) -> str | None:
    """`expected a number, got 'fast'`, or None where `value` may fit.

    Lists, mappings and annotations other than int, float, bool, str, Literal, None and unions of these are let pass.
    """
    if isinstance(value, (list, dict)):
        return None
    expected: list[str] = []
    for member in _members(annotation):
        words = _refusal(member, value)
        if words is None:
            return None
        expected.append(words)
    shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return f"expected {' or '.join(word for word in expected if word)}, got {shown}"


def _members(annotation: Any) -> tuple[Any, ...]:
    is_union = get_origin(annotation) in (Union, types.UnionType)
    return get_args(annotation) if is_union else (annotation,)


def _refusal(annotation: Any, value: Any) -> str | None:
    """What `annotation` expects, where `value` is not it; None where it may be."""
    if annotation is inspect.Parameter.empty:
        return None
    if annotation is None or annotation is type(None):
        return None if value is None else "null"
    if get_origin(annotation) is Literal:
        choices = get_args(annotation)
        return None if value in choices else " or ".join(map(repr, choices))
    if annotation in (int, float, bool, str):
        fits = isinstance(value, (int, float) if annotation is float else annotation) and isinstance(value, bool) == (
            annotation is bool
        )
        return None if fits else _WORDS[annotation]
    # YAML has no tensors; anything else might be made from a text by who takes it.
    return "" if getattr(annotation, "__name__", "") == "Tensor" and not isinstance(value, (int, float)) else None

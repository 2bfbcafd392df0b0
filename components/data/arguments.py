"""Kinds of numbers at the prompt, by names that argparse can say what is wrong with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def positive(kind: type) -> Callable[[str], Any]:
    """For argparse's `type`: an `int` or `float` above 0 and below infinity."""

    def number(text: str) -> Any:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise ValueError
        return value

    number.__name__ = "positive number"
    return number


def whole(text: str) -> int:
    """For argparse's `type`: 0, 1, 2, ..."""
    if int(text) < 0:
        raise ValueError
    return int(text)


def fraction(text: str) -> float:
    """For argparse's `type`: from 0 to 1."""
    if not 0 <= float(text) <= 1:
        raise ValueError
    return float(text)


whole.__name__, fraction.__name__ = "whole number", "share between 0 and 1"

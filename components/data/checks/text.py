"""What can be wrong with a transcript, and what a CTC model needs of it."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import numpy as np

from components.data.checks.problems import Problem
from utils.errors import UserError

# Nobody speaks 60 characters a second; a fast reader of English reaches 25.
MAX_CHARS_PER_SECOND = 60.0
_OUTLIER_Z = 5.0
_FEWEST_FOR_OUTLIERS = 20
# Where half of all clips are the same, as short words are, the spread is nil: 10 % is no outlier.
_LEAST_SPREAD = 0.1

_SPECIAL = re.compile(r"<[^<>]+>|\[[^\[\]]+\]")
_SPACES = {"|", "▁", "<space>", "[SPACE]"}
_UNTIDY = re.compile(r"^\s|\s$|\s\s|[^\S ]")


class Vocabulary:
    """The units a model writes: characters, or pieces of several characters.

    Args:
        tokens: the units. Names in angle or square brackets such as `<blank>` or `[PAD]` are no text; `|`, `▁` and
            `<space>` stand for a space.
    """

    def __init__(self, tokens: Iterable[str]) -> None:
        pieces = {" " if token in _SPACES else token.replace("▁", " ") for token in tokens if _is_text(token)}
        self.pieces = frozenset(piece for piece in pieces if piece)
        self.characters = frozenset(character for piece in self.pieces for character in piece)
        self._longest = max(map(len, self.pieces), default=0)
        if not self.pieces:
            raise UserError("--vocab: the file holds no token that is text")

    @classmethod
    def from_file(cls, path: str | Path) -> Vocabulary:
        """Read JSON (`{token: id}`, or a list), or text with a token a line, each with or without an id behind it.

        Raises:
            UserError: the file cannot be read, or holds no tokens.
        """
        try:
            content = Path(path).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--vocab: cannot read {path}: {error}") from None
        if content.lstrip().startswith(("{", "[")) and Path(path).suffix == ".json":
            try:
                return cls(str(token) for token in json.loads(content))
            except json.JSONDecodeError as error:
                raise UserError(f"--vocab: {path} is not valid JSON: {error}") from None
        return cls(re.sub(r"(?<=\S)\s+\d+$", "", line) if line.strip() else line for line in content.split("\n"))

    def tokenize(self, text: str) -> list[str]:
        """The longest piece that fits, again and again; a character that no piece has stands for itself."""
        units, position = [], 0
        while position < len(text):
            for length in range(min(self._longest, len(text) - position), 0, -1):
                if length == 1 or text[position : position + length] in self.pieces:
                    units.append(text[position : position + length])
                    position += length
                    break
        return units


def _is_text(token: str) -> bool:
    return token in _SPACES or not _SPECIAL.fullmatch(token)


def check_text(text: str, vocabulary: Vocabulary | None) -> list[Problem]:
    """What is wrong with a transcript on its own; `vocabulary` None for any characters."""
    if not text.strip() or not any(_is_visible(character) for character in text):
        return [Problem("blank_text", repr(text) if text else "it is empty")]
    problems = []
    if text.isascii() and text.isprintable():  # most texts, at once
        kinds: dict[str, set[str]] = {}
    else:
        kinds = _odd_characters(text)
    problems += [Problem(code, named(characters)) for code, characters in kinds.items()]
    if not unicodedata.is_normalized("NFC", text):
        problems.append(Problem("not_nfc", named({c for c in text if unicodedata.combining(c)})))
    if _UNTIDY.search(text):
        problems.append(Problem("untidy_spaces", repr(text[:60])))
    if vocabulary and (strange := set(text) - vocabulary.characters):
        problems.append(Problem("out_of_vocabulary", named(strange)))
    return problems


def _is_visible(character: str) -> bool:
    return unicodedata.category(character)[0] not in "CZM"


def _odd_characters(text: str) -> dict[str, set[str]]:
    kinds: dict[str, set[str]] = {}
    for character in set(text):
        category = unicodedata.category(character)
        if category in ("Cc", "Cs") and character not in "\t\n\r":
            kinds.setdefault("control_characters", set()).add(character)
        elif category == "Cf":
            kinds.setdefault("invisible_characters", set()).add(character)
        elif character == "\N{REPLACEMENT CHARACTER}":
            kinds.setdefault("replacement_character", set()).add(character)
    return kinds


def named(characters: Iterable[str], most: int = 8) -> str:
    """Characters for a person: what prints as itself, code point, Unicode name."""
    ordered = sorted(characters)
    shown = [
        f"{character if character.isprintable() else ''} U+{ord(character):04X} {name_of(character)}".strip()
        for character in ordered[:most]
    ]
    more = f", and {len(ordered) - most} more" if len(ordered) > most else ""
    return ", ".join(shown) + more


def name_of(character: str) -> str:
    """The Unicode name of a character, for a person."""
    return unicodedata.name(character, "control character").lower()


def check_speed(text: str, seconds: float, frame_rate: float | None, vocabulary: Vocabulary | None) -> list[Problem]:
    """Whether `text` fits into so many seconds of speech, and into a CTC model's frames.

    A CTC path needs a frame for every unit, and one for the blank between two that are equal: T >= U + repeats
    (Graves et al. 2006, section 3).

    Args:
        frame_rate: frames a second that come out of the model; None for no check of that kind.
    """
    problems = []
    if len(text) > MAX_CHARS_PER_SECOND * seconds:
        problems.append(Problem("too_much_text", f"{len(text)} characters in {seconds:.2f} s"))
    if frame_rate is not None:
        units = list(text) if vocabulary is None else vocabulary.tokenize(text)
        needed = len(units) + sum(one == other for one, other in pairwise(units))
        frames = int(seconds * frame_rate + 1e-6)
        if frames < needed:
            problems.append(Problem("ctc_infeasible", f"{needed} frames needed, {frames} there"))
    return problems


def speed_limits(chars_per_second: np.ndarray) -> tuple[float, float] | None:
    """Bounds for characters a second, from those of a whole language or manifest.

    They are 5 robust standard deviations of the logarithm (the median absolute deviation over 0.6745; Iglewicz and
    Hoaglin 1993, "How to Detect and Handle Outliers") to both sides of the median. None for fewer than 20 clips.

    Args:
        chars_per_second: positive, `[N]`.
    """
    if len(chars_per_second) < _FEWEST_FOR_OUTLIERS:
        return None
    logarithms = np.log(chars_per_second)
    median = float(np.median(logarithms))
    spread = max(float(np.median(np.abs(logarithms - median))) / 0.6745, _LEAST_SPREAD)
    return float(np.exp(median - _OUTLIER_Z * spread)), float(np.exp(median + _OUTLIER_Z * spread))


def comparable(text: str) -> str:
    """What two texts that a listener can't tell apart have in common."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())

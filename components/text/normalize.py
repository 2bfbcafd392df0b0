"""Texts as they are to be recognised: one way of writing for what sounds the same."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from utils.errors import UserError

_CHOICES = {
    "form": ("NFC", "NFKC", "NFD", "NFKD"),
    "case": ("keep", "lower", "upper"),
    "punctuation": ("keep", "remove"),
    "spaces": ("single", "remove"),
}
_NON_JOINER, _JOINER = "\u200c", "\u200d"  # invisible, but letters of Persian and of Indian scripts hang on them
_SPOKEN = "%&@"  # Unicode calls them punctuation, and people read them aloud
_IN_A_NUMBER = re.compile(r"(?<=\d)[.,:](?=\d)")
_HELD = "\ue000"  # stands for a mark that is kept; private, so no text has it


@dataclass(frozen=True)
class Normalize:
    """A callable `text -> text`: composed (NFC) and without invisible characters, and what else is asked for.

    Numbers stay as they are: `3.5` and `10:30` keep their marks, and nothing is spelled out.

    Args:
        form: NFC, NFD, NFKC or NFKD of Unicode's annex 15. The same letter comes out the same, however it was typed.
        case: keep, lower or upper.
        punctuation: keep; or remove: marks become spaces; those of `kept_marks` stay inside of words, and what is read
            aloud stays (`%`, `&`, `@`, and symbols such as `$` and `+`, which are no punctuation).
        kept_marks: `don't` is one word, `'quoted'` loses its marks.
        spaces: single: one between words, none at the ends; remove: none at all, as for Mandarin.
        replace: literal text -> text, first of all: `{"&": " and ", "<NOISE>": ""}`.

    Raises:
        UserError: an unknown choice.
    """

    form: str = "NFC"
    case: str = "keep"
    punctuation: str = "keep"
    kept_marks: str = "'"
    spaces: str = "single"
    replace: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise UserError(f"normalize.{name}: {getattr(self, name)!r} is none of {', '.join(allowed)}")
        object.__setattr__(self, "replace", {str(key): str(value) for key, value in self.replace.items()})

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Normalize:
        """From what `as_dict` gave.

        Raises:
            UserError: a key that is none.
        """
        known = {entry.name for entry in fields(cls)}
        if unknown := sorted(set(content) - known):
            raise UserError(f"normalize.{unknown[0]}: there is no such option, only {', '.join(sorted(known))}")
        return cls(**content)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)

    def __call__(self, text: str) -> str:
        for old, new in self.replace.items():
            text = text.replace(old, new)
        text = unicodedata.normalize(self.form, text)
        text = "".join(map(_visible, text)) if not text.isascii() or not text.isprintable() else text
        if self.case != "keep":
            changed = text.lower() if self.case == "lower" else text.upper()
            text = unicodedata.normalize(self.form, changed)
        if self.punctuation == "remove":
            text = self._without_marks(text)
        return ("" if self.spaces == "remove" else " ").join(text.split())

    def _without_marks(self, text: str) -> str:
        if "'" in self.kept_marks:
            text = text.replace("’", "'")
        marks = re.findall(_IN_A_NUMBER, text)
        text = re.sub(_IN_A_NUMBER, _HELD, text)
        text = "".join(" " if self._is_mark(character) else character for character in text)
        words = (word.strip(self.kept_marks) if self.kept_marks else word for word in text.split())
        text, held = " ".join(filter(None, words)), iter(marks)
        return re.sub(_HELD, lambda _: next(held), text)

    def _is_mark(self, character: str) -> bool:
        return character not in self.kept_marks + _SPOKEN and unicodedata.category(character)[0] == "P"


def _visible(character: str) -> str:
    """Line breaks and the like are spaces; what has no width (byte order marks, soft hyphens) is nothing."""
    if unicodedata.category(character) not in ("Cc", "Cf") or character in (_JOINER, _NON_JOINER):
        return character
    return " " if character.isspace() else ""


def graphemes(text: str) -> list[str]:
    """What a reader takes for characters: a letter with its combining marks, an emoji with its joined parts.

    The chief rules of Unicode's annex 29 (extending marks, joiners, modifiers); flags of two letters stay two, and so
    do consonants that Indian scripts write as one.
    """
    if text.isascii():
        return list(text)
    clusters: list[str] = []
    for character in text:
        if clusters and (_extends(character) or clusters[-1].endswith(_JOINER)):
            clusters[-1] += character
        else:
            clusters.append(character)
    return clusters


def _extends(character: str) -> bool:
    joins = character in (_JOINER, _NON_JOINER) or "\U0001f3fb" <= character <= "\U0001f3ff"
    return joins or unicodedata.category(character)[0] == "M"

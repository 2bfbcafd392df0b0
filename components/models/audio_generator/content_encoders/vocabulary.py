"""Texts to symbols without any library."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from string import Formatter
from typing import Any

import torch
from torch import Tensor

from utils.errors import UserError

_WORD = re.compile(r"\w+(?:['’\-]\w+)*|[^\w\s]")
_SPECIAL = ("<pad>", "<start>", "<unk>")


def normalise(text: str) -> str:
    """Lower case, composed (NFC), single spaces."""
    return " ".join(unicodedata.normalize("NFC", text).lower().split())


def words_of(text: str) -> list[str]:
    """Normalised words; a punctuation mark is a word of its own."""
    return _WORD.findall(normalise(text))


def vocabulary_of(templates: Iterable[Any], values: Mapping[str, Iterable[Any]] | None = None) -> list[str]:
    """All words that templates can become, sorted.

    Args:
        templates: sentences with fields, "say the word {word} like {speaker}"; lists, or mappings task -> list, as deep
            as one likes.
        values: field -> all that may stand there, likewise.

    Raises:
        UserError: a template has a field without values.
    """
    values, words = values or {}, set()
    for template in _flat(templates):
        for literal, field, _, _ in Formatter().parse(template):
            words.update(words_of(literal))
            if field is not None and field not in values:
                raise UserError(f"vocabulary: {template!r} has a field {field!r}, for which there are no values")
    words.update(word for value in _flat(values) for word in words_of(value))
    return sorted(words)


def _flat(nested: Any) -> Iterator[str]:
    """The texts in lists and mappings of lists."""
    if isinstance(nested, str) or not isinstance(nested, Iterable):
        yield str(nested)
        return
    for one in nested.values() if isinstance(nested, Mapping) else nested:
        yield from _flat(one)


class Vocabulary:
    """Symbols as numbers: 0 is padding, 1 the start of every text (so that no text is empty), 2 any unknown symbol.

    Args:
        symbols: in the order of their numbers, from 3.

    Raises:
        UserError: there is none, or one comes twice.
    """

    pad_id, start_id, unknown_id = range(3)

    def __init__(self, symbols: Sequence[str]) -> None:
        self.symbols = (*_SPECIAL, *symbols)
        self.ids = {symbol: i for i, symbol in enumerate(self.symbols)}
        if len(symbols) == 0:
            raise UserError("vocabulary: there is not one symbol in it")
        if len(self.ids) != len(self.symbols):
            twice = next(symbol for i, symbol in enumerate(self.symbols) if self.ids[symbol] != i)
            raise UserError(f"vocabulary: {twice!r} is in it twice")

    def __len__(self) -> int:
        return len(self.symbols)

    def encode(self, texts: Sequence[Sequence[str]]) -> tuple[Tensor, Tensor]:
        """Symbols of each text to numbers int64 `[B, S]`, padded, and their lengths `[B]`; both on the CPU."""
        rows = [[self.start_id, *(self.ids.get(symbol, self.unknown_id) for symbol in text)] for text in texts]
        lens = torch.tensor([len(row) for row in rows])
        longest = max(map(len, rows))
        return torch.tensor([row + [self.pad_id] * (longest - len(row)) for row in rows]), lens

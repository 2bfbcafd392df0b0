"""Tokenizers whose symbols can be read off a text: characters, words, bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from components.text.normalize import Normalize, graphemes
from components.text.tokenizer import UNKNOWN_TEXT, Tokenizer


class CharTokenizer(Tokenizer):
    """Characters as a reader sees them: a letter with its combining marks is one symbol, and so is a space.

    Args:
        symbols: one after the other in a text, or a list; with the space where words are parted by spaces.
        normalize: see `Tokenizer`.
    """

    kind: ClassVar[str] = "char"

    def __init__(self, symbols: str | Sequence[str], normalize: Normalize | None = None) -> None:
        super().__init__(graphemes(symbols) if isinstance(symbols, str) else list(symbols), normalize)

    def split(self, text: str) -> list[str]:
        return graphemes(text)

    def join(self, symbols: Sequence[str]) -> str:
        return "".join(symbols)


class WordTokenizer(Tokenizer):
    """Words parted by spaces, a symbol each.

    Args:
        symbols: the words.
        normalize: see `Tokenizer`.
    """

    kind: ClassVar[str] = "word"

    def __init__(self, symbols: Sequence[str], normalize: Normalize | None = None) -> None:
        super().__init__(list(symbols), normalize)

    def split(self, text: str) -> list[str]:
        return text.split()

    def join(self, symbols: Sequence[str]) -> str:
        return " ".join(symbols)


class ByteTokenizer(Tokenizer):
    """The bytes of UTF-8: nothing is unknown, nothing needs to be trained.

    Args:
        normalize: see `Tokenizer`.
    """

    kind: ClassVar[str] = "byte"

    def __init__(self, normalize: Normalize | None = None) -> None:
        super().__init__([f"<0x{byte:02X}>" for byte in range(256)], normalize)

    @classmethod
    def made_from(cls, content: Mapping[str, Any]) -> ByteTokenizer:
        return cls(Normalize.from_dict(content["normalize"]))

    def split(self, text: str) -> list[str]:
        return [f"<0x{byte:02X}>" for byte in text.encode()]

    def join(self, symbols: Sequence[str]) -> str:
        """The text of bytes; those that make no character become `\ufffd`."""
        unknown = UNKNOWN_TEXT.encode()
        parts = (unknown if symbol == UNKNOWN_TEXT else bytes([int(symbol[3:5], 16)]) for symbol in symbols)
        return b"".join(parts).decode(errors="replace")

    def _is_gap(self, symbol: str) -> bool:
        return symbol == "<0x20>"

    def _opens_word(self, symbol: str) -> bool:
        return False

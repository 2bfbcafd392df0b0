"""How the words of a transcription are written in a tokenizer's symbols."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from components.text.tokenizer import Tokenizer

UNKNOWN_LETTER = b"\xff"  # in no UTF-8
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


@dataclass(frozen=True)
class Spelling:
    """What every token id does to the word that is being written.

    Attributes:
        opens: whether the word before it is complete, be it a space or the beginning of another word.
        letters: bytes of UTF-8 that it adds; none for a space and for blank, begin and end.
    """

    opens: list[bool]
    letters: list[bytes]

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Spelling:
        """The spelling by a tokenizer's `word_spans` and `decode`."""
        silent = {tokenizer.blank_id, tokenizer.bos_id, tokenizer.eos_id}
        opens, letters = [], []
        for token, symbol in enumerate(tokenizer.tokens):
            num_words = 0 if token in silent else len(tokenizer.word_spans([token, token]))
            opens.append(token not in silent and num_words != 1)
            if num_words == 0:
                letters.append(b"")
            elif token == tokenizer.unk_id:
                letters.append(UNKNOWN_LETTER)
            elif byte := _BYTE.fullmatch(symbol):
                letters.append(bytes.fromhex(byte[1]))
            else:
                letters.append(tokenizer.decode([token]).strip().encode())
        return cls(opens, letters)

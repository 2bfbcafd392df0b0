"""Phones: lists of them, scripts in which a symbol takes several characters, lexicons."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from components.text.normalize import Normalize
from components.text.tokenizer import SPECIALS, Tokenizer
from utils.errors import UserError

BOUNDARY = "|"  # of words, as vocabularies of wav2vec 2.0 have it

# What others call our four, and their place for silence in a graph; they are left out of a vocabulary that is read.
_OTHERS_SPECIALS = {*SPECIALS, "<pad>", "[PAD]", "[UNK]", "<s>", "</s>", "<eps>", "<blk>", "<sos/eos>", "<sos>"}
_VARIANT = re.compile(r"\(\d+\)$")  # `read(2)` is another pronunciation of `read`


class PhonemeTokenizer(Tokenizer):
    """Phones of a text; a symbol may have several characters (`tʃ`, `aɪ`), and the longest that fits is taken.

    Texts are phones parted by spaces (`tʃ iː z`), with `|` between words where the vocabulary has it; a part that is no
    symbol as a whole is split into the longest symbols, from its beginning on. With `parted_by="words"` spaces part
    words instead, and become `|`: `tʃiːz piːz`. With a lexicon texts are ordinary words, and each becomes its phones.

    Args:
        symbols: the phones; or a file of them: JSON, a list or `{symbol: id}` as vocabularies of wav2vec 2.0 are; else
            a symbol to a line, what follows it is not read. Names of a blank, of padding, of begin, end and the unknown
            symbol are left out: ours have their own ids. None: those of the lexicon.
        parted_by: "phones" or "words", what spaces part in a text.
        lexicon: word -> phones parted by spaces; or a file with a word and its phones to a line, of which the first
            pronunciation counts (CMUdict, Kaldi's lexicon.txt). Words are looked up after `normalize`.
        normalize: see `Tokenizer`; by default lower case where there is a lexicon, else as it is.

    Raises:
        UserError: a file can not be read, is no such file, or words are parted and the vocabulary has no `|`.
    """

    kind: ClassVar[str] = "phoneme"

    def __init__(
        self,
        symbols: str | Path | Sequence[str] | None = None,
        parted_by: str = "phones",
        lexicon: str | Path | Mapping[str, str] | None = None,
        normalize: Normalize | None = None,
    ) -> None:
        if parted_by not in ("phones", "words"):
            raise UserError(f"parted_by: expected phones or words, got {parted_by!r}")
        if symbols is None and lexicon is None:
            raise UserError("a PhonemeTokenizer needs symbols, or a lexicon that has them")
        normalize = normalize or (None if lexicon is None else Normalize(case="lower"))
        self.lexicon = {} if lexicon is None else _lexicon(lexicon, normalize or Normalize())
        if symbols is None:
            symbols = sorted({phone for phones in self.lexicon.values() for phone in phones.split()})
        super().__init__(read_phones(symbols) if isinstance(symbols, (str, Path)) else list(symbols), normalize)
        self.parted_by = parted_by
        if parted_by == "words" and BOUNDARY not in self._ids:
            raise UserError(f"parted_by=words: the vocabulary has no {BOUNDARY!r}, which is to stand between words")
        by_length = sorted((symbol for symbol in self._ids if symbol != SPECIALS[self.unk_id]), key=len, reverse=True)
        self._longest = re.compile("|".join(map(re.escape, by_length)) + "|.", re.DOTALL)

    def _own_content(self) -> dict[str, Any]:
        return {"parted_by": self.parted_by, "lexicon": self.lexicon}

    @classmethod
    def made_from(cls, content: Mapping[str, Any]) -> PhonemeTokenizer:
        normalize = Normalize.from_dict(content["normalize"])
        tokenizer = cls(content["tokens"][len(SPECIALS) :], content["parted_by"], None, normalize)
        tokenizer.lexicon = dict(content["lexicon"])
        return tokenizer

    def split(self, text: str) -> list[str]:
        found: list[str] = []
        for part in text.split():
            if found and BOUNDARY in self._ids and (self.parted_by == "words" or self.lexicon):
                found.append(BOUNDARY)
            if self.lexicon:
                found += self.lexicon[part].split() if part in self.lexicon else [part]
            else:
                found += [part] if part in self._ids else self._longest.findall(part)
        return found

    def join(self, symbols: Sequence[str]) -> str:
        """Phones parted by spaces, or, where spaces part words, words."""
        if self.parted_by == "words":
            return " ".join("".join(" " if s == BOUNDARY else s for s in symbols).split())
        return " ".join(symbols)

    def _is_gap(self, symbol: str) -> bool:
        return symbol == BOUNDARY

    def _opens_word(self, symbol: str) -> bool:
        return BOUNDARY not in self._ids


def read_phones(path: str | Path) -> list[str]:
    """The symbols of a vocabulary file, in order, see `PhonemeTokenizer`.

    Raises:
        UserError: it can not be read, or is no vocabulary.
    """
    path = Path(path).expanduser()
    text = _text_of(path, "vocabulary")
    if path.suffix != ".json":
        symbols = [line.split()[0] for line in text.splitlines() if line.strip()]
    else:
        try:
            content = json.loads(text)
        except ValueError as error:
            raise UserError(f"the vocabulary {path} is no JSON: {error}") from None
        if isinstance(content, dict) and all(isinstance(number, int) for number in content.values()):
            content = sorted(content, key=content.__getitem__)
        if not isinstance(content, list) or not all(isinstance(symbol, str) for symbol in content):
            raise UserError(f"the vocabulary {path} is neither a list of symbols nor a mapping of symbols to numbers")
        symbols = content
    # Disambiguation symbols (`#0`) of a graph are no phones.
    return [s for s in symbols if s not in _OTHERS_SPECIALS and not re.fullmatch(r"#\d+", s)]


def _lexicon(source: str | Path | Mapping[str, str], normalize: Normalize) -> dict[str, str]:
    if isinstance(source, Mapping):
        entries = [(str(word), str(phones)) for word, phones in source.items()]
    else:
        entries = list(_read_lexicon(Path(source).expanduser()))
    found: dict[str, str] = {}
    for word, phones in entries:
        if (spoken := " ".join(phones.split())) and (written := normalize(word)):
            found.setdefault(written, spoken)
    if not found:
        raise UserError(f"lexicon: {source} has not one word with phones")
    return found


def _read_lexicon(path: Path) -> list[tuple[str, str]]:
    entries = []
    for number, line in enumerate(_text_of(path, "lexicon").splitlines(), start=1):
        line = line.partition(" #")[0].strip()
        if not line or line.startswith(";;;"):
            continue
        word, *rest = line.split(None, 1)
        if not rest:
            raise UserError(f"{path}:{number}: {word!r} has no phones")
        entries.append((_VARIANT.sub("", word), rest[0]))
    return entries


def _text_of(path: Path, what: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"can not read the {what} {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise UserError(f"can not read the {what} {path}: it is not UTF-8") from None

"""What all tokenizers have in common: numbers of symbols, one file that holds everything, its fingerprint."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from components.text.normalize import Normalize
from utils.errors import UserError
from utils.io import write_text

SPECIALS = ("<blank>", "<unk>", "<bos>", "<eos>")
UNKNOWN_TEXT = "\ufffd"  # what an unknown symbol is written as

_FORMAT = "ostinato tokenizer 1"
_kinds: dict[str, type[Tokenizer]] = {}


class WordSpan(NamedTuple):
    """A word, and its tokens: from `begin` to before `end`."""

    word: str
    begin: int
    end: int


class Tokenizer(ABC):
    """Texts to ids and back. In every vocabulary 0 is the blank, 1 the unknown symbol, 2 and 3 begin and end.

    Args:
        symbols: the others, in the order of their ids, from 4.
        normalize: done to every text before it is split. By default it only composes and tidies spaces.

    Attributes:
        tokens: the symbol of every id.
        made_of: what it was trained from and how, for people; not a part of what it does.

    Raises:
        UserError: there is no symbol, one is no text, is empty, comes twice, or is one of the four.
    """

    kind: ClassVar[str]
    blank_id, unk_id, bos_id, eos_id = range(4)

    def __init__(self, symbols: Sequence[str], normalize: Normalize | None = None) -> None:
        self.normalize = Normalize() if normalize is None else normalize
        self.tokens = [*SPECIALS, *symbols]
        self.made_of: dict[str, Any] = {}
        _check_symbols(symbols)
        # No text can put a blank, a begin or an end into the targets.
        self._ids = {symbol: i for i, symbol in enumerate(self.tokens) if i >= len(SPECIALS) or i == self.unk_id}

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "kind" in vars(cls):
            _kinds[cls.kind] = cls

    @property
    def vocab_size(self) -> int:
        """Ids, the four special ones included."""
        return len(self.tokens)

    @property
    def symbols(self) -> list[str]:
        """The tokens without the four special ones."""
        return self.tokens[len(SPECIALS) :]

    @abstractmethod
    def split(self, text: str) -> list[str]:
        """A normalised text in symbols, also in such that the vocabulary lacks."""

    @abstractmethod
    def join(self, symbols: Sequence[str]) -> str:
        """The text of symbols."""

    def pieces(self, text: str | Sequence[str]) -> list[str]:
        """A text, or its symbols where a manifest has a list of them, normalised and in symbols."""
        return self.split(self.normalize(text if isinstance(text, str) else " ".join(text)))

    def encode(self, text: str | Sequence[str]) -> list[int]:
        """Ids of a text, without begin and end; `unk_id` for what the vocabulary lacks."""
        return [self._ids.get(symbol, self.unk_id) for symbol in self.pieces(text)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; blank, begin, end and padding (negative ids) are left out, the unknown symbol is `\ufffd`.

        Raises:
            UserError: an id beyond the vocabulary.
        """
        return self.join([self._written(i) for i in self._ordinary(ids)])

    def knows(self, symbol: str) -> bool:
        """Whether the vocabulary has `symbol`."""
        return self._ids.get(symbol, self.unk_id) != self.unk_id

    def word_spans(self, ids: Sequence[int]) -> list[WordSpan]:
        """The words of ids, each with its tokens; what lies between words (spaces) belongs to none."""
        begin, spans = None, []
        for i, number in enumerate(ids):
            if number < len(SPECIALS) and number != self.unk_id:
                continue
            is_gap = self._is_gap(self.tokens[number])
            if begin is not None and (is_gap or self._opens_word(self.tokens[number])):
                spans.append(WordSpan(self.decode(ids[begin:i]).strip(), begin, i))
                begin = None
            if begin is None and not is_gap:
                begin = i
        if begin is not None:
            spans.append(WordSpan(self.decode(ids[begin:]).strip(), begin, len(ids)))
        return spans

    def _is_gap(self, symbol: str) -> bool:
        """Whether `symbol` lies between words."""
        return symbol.isspace()

    def _opens_word(self, symbol: str) -> bool:
        """Whether a word begins with `symbol` even where none has ended; where nothing parts words, each is one."""
        return " " not in self._ids

    def _ordinary(self, ids: Iterable[int]) -> list[int]:
        kept = []
        for number in map(int, ids):
            if number >= self.vocab_size:
                raise UserError(f"the id {number} is beyond the vocabulary of {self.vocab_size}")
            if number >= len(SPECIALS) or number == self.unk_id:
                kept.append(number)
        return kept

    def _written(self, number: int) -> str:
        return UNKNOWN_TEXT if number == self.unk_id else self.tokens[number]

    # ---------------------------------------------------------------------------------------------------------- file

    def content(self) -> dict[str, Any]:
        """What decides what it does, as plain data; `made_from` turns it back."""
        return {"kind": self.kind, "normalize": self.normalize.as_dict(), "tokens": self.tokens, **self._own_content()}

    def _own_content(self) -> dict[str, Any]:
        return {}

    @classmethod
    def made_from(cls, content: Mapping[str, Any]) -> Tokenizer:
        """The tokenizer whose `content` this is."""
        return cls(content["tokens"][len(SPECIALS) :], Normalize.from_dict(content["normalize"]))  # type: ignore[call-arg]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of `content`: tokenizers that do the same have the same."""
        return _fingerprint(self.content())

    def save(self, path: str | Path) -> None:
        """Write everything into one JSON file, whole or not at all.

        Raises:
            UserError: it can not be written.
        """
        path = Path(path).expanduser()
        content = {"format": _FORMAT, "fingerprint": self.fingerprint, **self.content(), "made_of": self.made_of}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(content, ensure_ascii=False, indent=1) + "\n")
        except OSError as error:
            raise UserError(f"cannot write the tokenizer {path}: {error.strerror or error}") from None

    @staticmethod
    def load(path: str | Path) -> Tokenizer:
        """As `load_tokenizer`."""
        return load_tokenizer(path)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.vocab_size} tokens, {self.fingerprint[:8]})"


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer that `Tokenizer.save` wrote, of whatever kind.

    Raises:
        UserError: there is no such file, it is no tokenizer, or it was changed since it was written.
    """
    path = Path(path).expanduser()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"can not read the tokenizer {path}: {getattr(error, 'strerror', None) or error}") from None
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise UserError(f"{path} is no tokenizer of ours: make one with `python -m components.text train`")
    written, made_of = content.pop("fingerprint", None), content.pop("made_of", {})
    del content["format"]
    if written is not None and written != _fingerprint(content):
        raise UserError(
            f"the tokenizer {path} is not what was written: make it anew, or, if you changed it on purpose, remove "
            "its fingerprint"
        )
    if content.get("kind") not in _kinds:
        raise UserError(f"the tokenizer {path} is of the kind {content.get('kind')!r}, not of {', '.join(_kinds)}")
    try:
        tokenizer = _kinds[content["kind"]].made_from(content)
    except (KeyError, TypeError) as error:
        raise UserError(f"the tokenizer {path} is not complete: {error}") from None
    tokenizer.made_of = made_of
    return tokenizer


def _fingerprint(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _check_symbols(symbols: Sequence[str]) -> None:
    if not len(symbols):
        raise UserError("symbols: the vocabulary has not one")
    seen = set(SPECIALS)
    for symbol in symbols:
        if not isinstance(symbol, str):
            raise UserError(f"symbols: {symbol!r} is no text; in YAML, put it into quotes")
        if not symbol:
            raise UserError("symbols: one is empty")
        if symbol in seen:
            raise UserError(f"symbols: {symbol!r} is {'one of ours' if symbol in SPECIALS else 'there twice'}")
        seen.add(symbol)


# ------------------------------------------------------------------------------------------------------------- unknown


@dataclass
class UnknownCount:
    """How much of some texts a vocabulary lacks.

    Attributes:
        num_tokens, num_texts: of all.
        num_unknown, num_affected: tokens that are unknown, texts that have any.
        by_symbol: symbol -> how often it was met.
    """

    num_tokens: int = 0
    num_texts: int = 0
    num_affected: int = 0
    by_symbol: Counter[str] = field(default_factory=Counter)

    @property
    def num_unknown(self) -> int:
        return sum(self.by_symbol.values())

    def __str__(self) -> str:
        told = f"{self.num_unknown} of {self.num_tokens} tokens are unknown, in {self.num_affected} of {self.num_texts}"
        shown = ", ".join(f"{symbol!r} {count}x" for symbol, count in self.by_symbol.most_common(8))
        more = f" and {len(self.by_symbol) - 8} more" if len(self.by_symbol) > 8 else ""
        return f"{told} texts" + (f": {shown}{more}" if shown else "")


def count_unknown(tokenizer: Tokenizer, texts: Iterable[str | Sequence[str]]) -> UnknownCount:
    """What the vocabulary lacks of `texts`."""
    count = UnknownCount()
    for text in texts:
        pieces = tokenizer.pieces(text)
        missing = [piece for piece in pieces if not tokenizer.knows(piece)]
        count.num_tokens += len(pieces)
        count.num_texts += 1
        count.num_affected += bool(missing)
        count.by_symbol.update(missing)
    return count


# ---------------------------------------------------------------------------------------------------- other vocabulary


@dataclass(frozen=True)
class RowMap:
    """Which row of an old vocabulary each id of a new one goes on from.

    Attributes:
        kept: new id -> old id, of the symbols in both.
        fresh, dropped: symbols that are new, and that are gone.
    """

    kept: dict[int, int]
    fresh: list[str]
    dropped: list[str]

    def __str__(self) -> str:
        parts = [f"{len(self.kept)} symbols keep their rows"]
        for symbols, what in ((self.fresh, "new"), (self.dropped, "gone")):
            if symbols:
                more = f" and {len(symbols) - 8} more" if len(symbols) > 8 else ""
                parts.append(f"{len(symbols)} are {what} ({', '.join(symbols[:8])}{more})")
        return "; ".join(parts)


def row_map(old: Tokenizer | Sequence[str], new: Tokenizer | Sequence[str]) -> RowMap:
    """What a change of vocabulary keeps of a trained embedding or output layer.

    The same is done to weights by `pretrained.remap_rows`, which takes two tokenizer files as `old` and `new`.

    Args:
        old, new: tokenizers, or the symbol of each row.
    """
    before, after = (list(getattr(one, "tokens", one)) for one in (old, new))
    row_of = {symbol: row for row, symbol in enumerate(before)}
    kept = {row: row_of[symbol] for row, symbol in enumerate(after) if symbol in row_of}
    fresh = [symbol for row, symbol in enumerate(after) if row not in kept]
    old_rows = set(kept.values())
    return RowMap(kept, fresh, [symbol for row, symbol in enumerate(before) if row not in old_rows])

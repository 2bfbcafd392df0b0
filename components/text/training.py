"""Tokenizers from texts: trained once, kept in a file."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from components.data.manifest import numbered_lines
from components.data.readers import iterate_records
from components.text.normalize import Normalize
from components.text.phonemes import PhonemeTokenizer
from components.text.pieces import train_pieces
from components.text.symbols import ByteTokenizer, CharTokenizer, WordTokenizer
from components.text.tokenizer import SPECIALS, Tokenizer, count_unknown, load_tokenizer
from utils.errors import UserError
from utils.names import did_you_mean

logger = logging.getLogger(__name__)

Text = str | Sequence[str]

KINDS = ("char", "word", "bpe", "unigram", "phoneme", "byte")
_PIECES = ("bpe", "unigram")
_OF_PIECES = ("character_coverage", "byte_fallback")


def train_tokenizer(
    texts: Iterable[Text],
    kind: str,
    normalize: Normalize | None = None,
    vocab_size: int | None = None,
    min_count: int = 1,
    character_coverage: float = 1.0,
    byte_fallback: bool = False,
) -> Tokenizer:
    """A tokenizer with the vocabulary of `texts`.

    Args:
        texts: sentences; for phonemes also lists of phones.
        kind: "char", "word", "bpe", "unigram", "phoneme" (phones parted by spaces) or "byte".
        normalize: a part of the tokenizer.
        vocab_size: ids, the four special ones included. `bpe` and `unigram` need it; of characters, words and phonemes
            at most so many, the most frequent ones; None for all.
        min_count: what is rarer is left out; of characters, words and phonemes.
        character_coverage, byte_fallback: see `train_pieces`.

    Raises:
        UserError: an unknown kind, an option that is not of this kind, no text, or texts too few for `vocab_size`.
    """
    if kind not in KINDS:
        raise UserError(f"kind: {kind!r} is none of {', '.join(KINDS)}{did_you_mean(kind, KINDS)}")
    normalize = normalize or Normalize()
    if kind in _PIECES:
        if vocab_size is None or min_count != 1:
            raise UserError(f"kind={kind}: say how many pieces with vocab_size, and leave min_count at 1")
        return train_pieces(map(_joined, texts), kind, vocab_size, normalize, character_coverage, byte_fallback)
    if character_coverage != 1.0 or byte_fallback:
        raise UserError(f"kind={kind}: {' and '.join(_OF_PIECES)} are options of {' and '.join(_PIECES)}")
    if kind == "byte":
        return ByteTokenizer(normalize)
    counts: Counter[str] = Counter()
    splitter = CharTokenizer(" ", normalize) if kind == "char" else WordTokenizer(["-"], normalize)
    for text in texts:
        counts.update(splitter.pieces(text))
    symbols = _most_frequent(counts, vocab_size, min_count)
    if kind == "phoneme":
        return PhonemeTokenizer(symbols, normalize=normalize)
    return (CharTokenizer if kind == "char" else WordTokenizer)(symbols, normalize)


def _most_frequent(counts: Counter[str], vocab_size: int | None, min_count: int) -> list[str]:
    """In the order of the alphabet, as it does not change with a few texts more."""
    for special in SPECIALS:
        counts.pop(special, None)
    ranked = sorted((symbol for symbol in counts if counts[symbol] >= min_count), key=lambda s: (-counts[s], s))
    if not ranked:
        raise UserError(f"the texts have no symbol that comes {min_count} times: is `field` right?")
    kept = ranked if vocab_size is None else ranked[: max(0, vocab_size - len(SPECIALS))]
    if len(kept) < len(counts):
        share = 1 - sum(counts[symbol] for symbol in kept) / counts.total()
        logger.info(
            "%d of %d symbols are left out, %.3g %% of the text", len(counts) - len(kept), len(counts), 100 * share
        )
    return sorted(kept)


def _joined(text: Text) -> str:
    return text if isinstance(text, str) else " ".join(text)


def texts_of(source: str | Path, field: str = "text") -> Iterator[Text]:
    """The texts of a collection, or of a `.txt` file with one to a line.

    Args:
        source: anything that `components.data.readers` reads.
        field: of the records; `phonemes` may be a list. Records without it are passed over.

    Raises:
        UserError: it can not be read, or no record has the field.
    """
    path, found = Path(source).expanduser(), 0
    if path.suffix == ".txt" and path.is_file():
        for number, line in numbered_lines(path):
            try:
                yield line.decode().strip()
            except UnicodeDecodeError:
                raise UserError(f"{path}:{number}: it is not UTF-8") from None
        return
    for record in iterate_records(path):
        text = record.get(field)
        if text:
            found += 1
            yield text if isinstance(text, str) else [str(part) for part in text]
    if not found:
        where = ": in a folder it is FILE.txt beside each audio file" if field == "text" else ""
        raise UserError(f"{source}: not one record has {field!r}{where}")


def tokenizer_of(
    manifest: str | Path | Sequence[str],
    kind: str,
    path: str | Path,
    field: str = "text",
    normalize: Normalize | None = None,
    vocab_size: int | None = None,
    min_count: int = 1,
    character_coverage: float = 1.0,
    byte_fallback: bool = False,
) -> Tokenizer:
    """The tokenizer in `path`, trained on the texts of `manifest` where there is none yet.

    Of several processes that ask at once one trains, and the others wait for its file.

    Args:
        manifest: one or several, as of `texts_of`; needed only where the file is not there yet.
        path: where the artefact is kept.
        field: of the records.
        kind, normalize, vocab_size, min_count, character_coverage, byte_fallback: see `train_tokenizer`.

    Raises:
        UserError: `path` holds a tokenizer of other texts or settings; or as `train_tokenizer`.
    """
    manifests = [str(manifest)] if isinstance(manifest, (str, Path)) else [str(one) for one in manifest]
    path = Path(path).expanduser()
    settings = {"kind": kind, "normalize": (normalize or Normalize()).as_dict(), "field": field}
    settings |= {"vocab_size": vocab_size, "min_count": min_count}
    settings |= {"character_coverage": character_coverage, "byte_fallback": byte_fallback}
    if path.is_file():
        return _fitting(path, settings, manifests)
    with _one_by_one(path):
        if path.is_file():
            return _fitting(path, settings, manifests)
        options = {name: settings[name] for name in ("vocab_size", "min_count", *_OF_PIECES)}
        texts = (text for one in manifests for text in texts_of(one, field))
        tokenizer = train_tokenizer(texts, kind, normalize, **options)
        tokenizer.made_of = {"settings": settings, "manifests": {one: _digest(one) for one in manifests}}
        tokenizer.save(path)
        logger.info("a vocabulary of %d for %s -> %s", tokenizer.vocab_size, ", ".join(manifests), path)
        unknown = count_unknown(tokenizer, (text for one in manifests for text in texts_of(one, field)))
        if unknown.num_unknown:
            logger.warning("%s: %s", path.name, unknown)
    return tokenizer


def _fitting(path: Path, settings: Mapping[str, Any], manifests: Sequence[str]) -> Tokenizer:
    """The tokenizer in `path`, if it was made with these settings, of these texts or of such as are gone by now."""
    tokenizer = load_tokenizer(path)
    before = tokenizer.made_of.get("settings", settings)
    different = [name for name in settings if settings[name] != before.get(name)]
    texts = tokenizer.made_of.get("manifests", {})
    now = {one: digest for one in manifests if (digest := _digest(one)) is not None}
    changed = [one for one in now if one in texts and texts[one] is not None and texts[one] != now[one]]
    if different:
        name = different[0]
        what = f"with {name}={before.get(name)!r}, not {settings[name]!r}"
    elif changed:
        what = f"of {changed[0]} as it was before"
    else:
        return tokenizer
    raise UserError(f"the tokenizer {path} was made {what}: remove it, or keep the new one elsewhere")


def _digest(manifest: str) -> str | None:
    """SHA-256 of a file; None where it is none."""
    path = Path(manifest).expanduser()
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _one_by_one(path: Path) -> Iterator[None]:
    """Processes of this machine go through here in turn; where a file system knows no locks, all at once.

    That is as good, only slower: each would write the same file, whole.
    """
    descriptor = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        fcntl.lockf(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        if descriptor is None:
            raise UserError(f"cannot write {path}: {error.strerror or error}") from None
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)

"""Pieces of words: byte-pair encoding and unigram models of sentencepiece."""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from components.text.normalize import Normalize
from components.text.tokenizer import SPECIALS, UNKNOWN_TEXT, Tokenizer
from utils.errors import UserError
from utils.imports import require

logger = logging.getLogger(__name__)

_SPACE = "▁"  # a piece that begins with it begins a word


class SentencePieceTokenizer(Tokenizer):
    """Pieces by a model of sentencepiece (Kudo and Richardson 2018, arXiv 1808.06226), which is part of the artefact.

    Its ordinary pieces keep their order and have our ids from 4; what the model calls padding, unknown, begin and end
    are ours.

    Args:
        model: a `.model` file, or its bytes.
        normalize: see `Tokenizer`; the model does its own after that.

    Raises:
        UserError: the file can not be read, is no model, or sentencepiece is not installed.
    """

    kind: ClassVar[str] = "sentencepiece"

    def __init__(self, model: str | Path | bytes, normalize: Normalize | None = None) -> None:
        self._model = model if isinstance(model, bytes) else _read(Path(model).expanduser())
        self._open()
        super().__init__([self._processor.id_to_piece(number) for number in self._theirs], normalize)

    def _open(self) -> None:
        library = require("sentencepiece", extra="asr")
        self._processor = library.SentencePieceProcessor()
        try:
            self._processor.load_from_serialized_proto(self._model)
        except (RuntimeError, TypeError) as error:
            raise UserError(f"model: sentencepiece can not read it: {error}") from None
        its = self._processor
        self._theirs = [
            number
            for number in range(its.get_piece_size())
            if not (its.is_control(number) or its.is_unknown(number) or its.is_unused(number))
        ]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_processor", "_theirs")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open()

    def _own_content(self) -> dict[str, Any]:
        return {"model": base64.b64encode(self._model).decode()}

    @classmethod
    def made_from(cls, content: Mapping[str, Any]) -> SentencePieceTokenizer:
        return cls(base64.b64decode(content["model"]), Normalize.from_dict(content["normalize"]))

    def split(self, text: str) -> list[str]:
        return self._processor.encode(text, out_type=str)

    def join(self, symbols: Sequence[str]) -> str:
        return self._processor.decode_pieces(list(symbols)).strip()

    def _is_gap(self, symbol: str) -> bool:
        return False

    def _opens_word(self, symbol: str) -> bool:
        return symbol.startswith(_SPACE)


def train_pieces(
    texts: Iterable[str],
    model_type: str,
    vocab_size: int,
    normalize: Normalize,
    character_coverage: float = 1.0,
    byte_fallback: bool = False,
) -> SentencePieceTokenizer:
    """Train a model of sentencepiece on texts; on one thread, so that the same texts give the same model.

    Args:
        texts: not yet normalised.
        model_type: "bpe" or "unigram".
        vocab_size: of all ids, the four special ones included.
        normalize: done to the texts here, and by the tokenizer.
        character_coverage: the share of characters that get a piece; 0.9995 for scripts with very many.
        byte_fallback: write what has no piece in bytes: then nothing is unknown.

    Raises:
        UserError: sentencepiece refuses, as for a `vocab_size` that the texts are too few for.
    """
    library = require("sentencepiece", extra="asr")
    written = io.BytesIO()
    blank, unknown, begin, end = SPECIALS
    try:
        library.SentencePieceTrainer.train(
            sentence_iterator=(line for text in texts if (line := normalize(text))),
            model_writer=written,
            model_type=model_type,
            vocab_size=vocab_size,
            character_coverage=character_coverage,
            byte_fallback=byte_fallback,
            normalization_rule_name="identity",
            pad_id=Tokenizer.blank_id,
            unk_id=Tokenizer.unk_id,
            bos_id=Tokenizer.bos_id,
            eos_id=Tokenizer.eos_id,
            pad_piece=blank,
            unk_piece=unknown,
            bos_piece=begin,
            eos_piece=end,
            unk_surface=UNKNOWN_TEXT,
            num_threads=1,
            max_sentence_length=1 << 16,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UserError(f"vocab_size={vocab_size}: sentencepiece refuses: {_plain(error)}") from None
    return SentencePieceTokenizer(written.getvalue(), normalize)


def _plain(error: RuntimeError) -> str:
    """What it says, without where in its source."""
    return str(error).rpartition("] ")[2].strip() or str(error)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"can not read the model {path}: {error.strerror or error}") from None

"""Texts to ids and back: normalisers, tokenizers, vocabularies."""

from components.text.normalize import Normalize, graphemes
from components.text.phonemes import PhonemeTokenizer, read_phones
from components.text.pieces import SentencePieceTokenizer, train_pieces
from components.text.symbols import ByteTokenizer, CharTokenizer, WordTokenizer
from components.text.tokenizer import (
    RowMap,
    Tokenizer,
    UnknownCount,
    WordSpan,
    count_unknown,
    load_tokenizer,
    row_map,
)
from components.text.training import texts_of, tokenizer_of, train_tokenizer

__all__ = [
    "ByteTokenizer",
    "CharTokenizer",
    "Normalize",
    "PhonemeTokenizer",
    "RowMap",
    "SentencePieceTokenizer",
    "Tokenizer",
    "UnknownCount",
    "WordSpan",
    "WordTokenizer",
    "count_unknown",
    "graphemes",
    "load_tokenizer",
    "read_phones",
    "row_map",
    "texts_of",
    "tokenizer_of",
    "train_pieces",
    "train_tokenizer",
]

"""Small text encoders that need no library and no download.  Shapes: B batch, S tokens, E width."""

from __future__ import annotations

import string
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from components.models.audio_generator.conditions import Stream
from components.models.audio_generator.content_encoders.base import ContentEncoder, padding_mask_of
from components.models.audio_generator.content_encoders.layers import TokenLayers
from components.models.audio_generator.content_encoders.vocabulary import Vocabulary, normalise, words_of

_CHARACTERS = string.ascii_lowercase + string.digits + " '-.,:;!?"


class SymbolEncoder(ContentEncoder):
    """Embeddings of a text's symbols, and transformer layers over them.

    Args:
        symbols: all that are known; any other is `<unk>`.
        embed_dim, num_layers, num_heads, ratio, dropout: see `TokenLayers`.
        unknown_share: how often in training a symbol is taken for unknown, so that `<unk>` is learned; drawn from
            torch's global generator of the CPU.
    """

    def __init__(
        self,
        symbols: Sequence[str],
        embed_dim: int = 128,
        num_layers: int = 1,
        num_heads: int = 4,
        ratio: float = 4.0,
        dropout: float = 0.0,
        unknown_share: float = 0.0,
    ) -> None:
        super().__init__()
        self.embed_dim, self.unknown_share = embed_dim, unknown_share
        self.vocabulary = Vocabulary(symbols)
        self.embedding = nn.Embedding(len(self.vocabulary), embed_dim)
        self.layers = TokenLayers(embed_dim, num_layers, num_heads, ratio, dropout=dropout)

    @abstractmethod
    def symbols_of(self, text: str) -> Sequence[str]:
        """A text in its symbols."""

    def forward(self, entry: Sequence[str], lens: Tensor | None = None, **fields: Any) -> Stream:
        """Texts, B of them, to `[B, S, E]` and lengths; an empty text is one token, the start."""
        tokens, lens = self.vocabulary.encode([self.symbols_of(text) for text in entry])
        if self.training and self.unknown_share:
            unknown = (torch.rand(tokens.shape) < self.unknown_share) & (tokens > self.vocabulary.unknown_id)
            tokens = tokens.masked_fill(unknown, self.vocabulary.unknown_id)
        device = self.embedding.weight.device
        padding_mask = padding_mask_of(lens, tokens.shape[1])
        tokens, lens = tokens.to(device), lens.to(device)
        if padding_mask is not None:
            padding_mask = padding_mask.to(device)
        return Stream(self.layers(self.embedding(tokens), lens, padding_mask), lens)


class WordEncoder(SymbolEncoder):
    """Words, lower-cased, of a fixed vocabulary: `vocabulary_of` makes one of templates.

    Args:
        vocabulary: words in the order of their numbers.
        The others: as `SymbolEncoder`.
    """

    def __init__(
        self,
        vocabulary: Sequence[str],
        embed_dim: int = 128,
        num_layers: int = 1,
        num_heads: int = 4,
        ratio: float = 4.0,
        dropout: float = 0.0,
        unknown_share: float = 0.0,
    ) -> None:
        super().__init__(vocabulary, embed_dim, num_layers, num_heads, ratio, dropout, unknown_share)

    def symbols_of(self, text: str) -> Sequence[str]:
        return words_of(text)


class CharEncoder(SymbolEncoder):
    """Characters, lower-cased.

    Args:
        alphabet: by default those of English.
        The others: as `SymbolEncoder`.
    """

    def __init__(
        self,
        alphabet: str = _CHARACTERS,
        embed_dim: int = 128,
        num_layers: int = 2,
        num_heads: int = 4,
        ratio: float = 4.0,
        dropout: float = 0.0,
        unknown_share: float = 0.0,
    ) -> None:
        super().__init__(list(alphabet), embed_dim, num_layers, num_heads, ratio, dropout, unknown_share)

    def symbols_of(self, text: str) -> Sequence[str]:
        return normalise(text)

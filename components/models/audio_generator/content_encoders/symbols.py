"""What is to be said or sung, symbol by symbol.  Shapes: B batch, S symbols, E width."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from components.models.audio_generator.conditions import Stream
from components.models.audio_generator.content_encoders.base import ContentEncoder, padding_mask_of
from components.models.audio_generator.content_encoders.layers import TokenLayers


class PhonemeEncoder(ContentEncoder):
    """Phonemes through the feed-forward transformer blocks of FastSpeech 2 (Ren et al. 2021, arXiv:2006.04558).

    Args:
        num_phonemes: ids run from 0 to one less; padding needs none of its own.
        embed_dim, num_layers, num_heads, ratio, kernel_size, dropout: see `TokenLayers`.
        speaker_dim: width of the field `speaker_embedding [B, speaker_dim]`, which is added to all phonemes; a batch
            without it has speakers of zeros. None: there is no such field.
    """

    def __init__(
        self,
        num_phonemes: int,
        embed_dim: int = 128,
        num_layers: int = 2,
        num_heads: int = 2,
        ratio: float = 4.0,
        kernel_size: int = 9,
        dropout: float = 0.1,
        speaker_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.embedding = nn.Embedding(num_phonemes, embed_dim)
        self.speaker = None if speaker_dim is None else nn.Linear(speaker_dim, embed_dim)
        self.layers = TokenLayers(embed_dim, num_layers, num_heads, ratio, kernel_size, dropout)
        self.more_fields = () if speaker_dim is None else ("speaker_embedding",)

    def forward(self, entry: Tensor, lens: Tensor | None = None, **fields: Any) -> Stream:
        """Phonemes int64 `[B, S]` with `lens [B]` (None: all of S) to `[B, S, E]`."""
        lens = full_lens(entry) if lens is None else lens
        x = self.embed(entry, **fields)
        return Stream(self.layers(x, lens, padding_mask_of(lens, entry.shape[1])), lens)

    def embed(self, phonemes: Tensor, speaker_embedding: Tensor | None = None) -> Tensor:
        """What the layers are given, `[B, S, E]`."""
        x = self.embedding(phonemes)
        if self.speaker is None:
            return x
        if speaker_embedding is None:
            speaker_embedding = x.new_zeros(len(x), self.speaker.in_features)
        return x + self.speaker(speaker_embedding.to(x.dtype)).unsqueeze(1)


class MidiEncoder(PhonemeEncoder):
    """A score: phonemes, each with its note, whether it continues the one before, and how long the note lasts.

    Beside the phonemes it reads the fields `notes` int64 `[B, S]`, `slurs` int64 `[B, S]` (1: the note is sung on the
    vowel before) and `note_durations` `[B, S]` in seconds.

    Args:
        num_phonemes: see `PhonemeEncoder`.
        num_notes: ids of notes run from 0 (a rest, say) to one less.
        The others: as `PhonemeEncoder`.
    """

    def __init__(
        self,
        num_phonemes: int,
        num_notes: int = 128,
        embed_dim: int = 128,
        num_layers: int = 2,
        num_heads: int = 2,
        ratio: float = 4.0,
        kernel_size: int = 9,
        dropout: float = 0.1,
        speaker_dim: int | None = None,
    ) -> None:
        super().__init__(num_phonemes, embed_dim, num_layers, num_heads, ratio, kernel_size, dropout, speaker_dim)
        self.note_embedding = nn.Embedding(num_notes, embed_dim)
        self.slur_embedding = nn.Embedding(2, embed_dim)
        self.duration = nn.Linear(1, embed_dim)
        self.more_fields = ("notes", "slurs", "note_durations", *self.more_fields)

    def embed(  # type: ignore[override]
        self,
        phonemes: Tensor,
        notes: Tensor,
        slurs: Tensor,
        note_durations: Tensor,
        speaker_embedding: Tensor | None = None,
    ) -> Tensor:
        x = super().embed(phonemes, speaker_embedding)
        # seconds span orders of magnitude, and a factor is what one hears
        durations = self.duration(torch.log(note_durations.to(x.dtype).clamp(min=0.01)).unsqueeze(-1))
        return x + self.note_embedding(notes) + self.slur_embedding(slurs) + durations


def full_lens(values: Tensor) -> Tensor:
    """The lengths `[B]` of `[B, S, ...]` where nothing is padded."""
    return torch.full((len(values),), values.shape[1], device=values.device)

"""Transformer layers over tokens.  Shapes: B batch, S tokens, E width."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import gelu

from components.layers import Attention, rotary_tables
from components.models.audio_generator.content_encoders.base import zero_behind
from utils.errors import UserError


class TokenLayers(nn.Module):
    """Pre-norm transformer layers with rotary positions, whose per-token network may see its neighbours.

    With `kernel_size` 9 these are the feed-forward transformer blocks of FastSpeech 2 (Ren et al. 2021,
    arXiv:2006.04558, 2.2), but for the place of the normalisation and the kind of positions.

    Args:
        dim: E.
        num_layers: 0 for embeddings as they are.
        num_heads: must divide E into even parts.
        ratio: hidden width of the per-token network over E.
        kernel_size: tokens that its first layer sees; odd.
        dropout: on what each layer adds.

    Raises:
        UserError: the heads do not divide E, or the kernel is even.
    """

    def __init__(
        self,
        dim: int,
        num_layers: int,
        num_heads: int = 4,
        ratio: float = 4.0,
        kernel_size: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if dim % (2 * num_heads):
            raise UserError(f"embed_dim: {num_heads} heads do not divide {dim} channels into even parts")
        if kernel_size % 2 == 0:
            raise UserError(f"kernel_size must be odd, got {kernel_size}")
        self.head_dim = dim // num_heads
        self.layers = nn.ModuleList(_TokenLayer(dim, num_heads, ratio, kernel_size, dropout) for _ in range(num_layers))
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, lens: Tensor, padding_mask: Tensor | None) -> Tensor:
        """`[B, S, E]`, `[B]` to `[B, S, E]`, zero behind each item; `padding_mask` as `padding_mask_of` gives it."""
        rotary = rotary_tables(x.shape[1], self.head_dim, x.device)
        x = zero_behind(x, lens)
        for layer in self.layers:
            x = layer(x, lens, padding_mask, rotary)
        return zero_behind(self.norm(x), lens)


class _TokenLayer(nn.Module):
    def __init__(self, dim: int, num_heads: int, ratio: float, kernel_size: int, dropout: float) -> None:
        super().__init__()
        hidden = int(dim * ratio)
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = Attention(dim, num_heads)
        self.network_norm = nn.LayerNorm(dim)
        self.hidden = nn.Conv1d(dim, hidden, kernel_size, padding=kernel_size // 2)
        self.out = nn.Linear(hidden, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, lens: Tensor, padding_mask: Tensor | None, rotary: tuple[Tensor, Tensor]) -> Tensor:
        attended = self.attention(self.attention_norm(x), padding_mask=padding_mask, rotary=rotary)
        x = x + self.dropout(attended)
        near = zero_behind(self.network_norm(x), lens)  # a convolution of a clip alone finds zeros behind its end
        hidden = gelu(self.hidden(near.transpose(1, 2)).transpose(1, 2))
        return x + self.dropout(self.out(hidden))

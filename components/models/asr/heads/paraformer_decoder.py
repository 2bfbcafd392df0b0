"""Decoders that say all tokens at once.

Shapes: B batch, N tokens, T frames, D model, M width of the frames, H heads, C channels of a head.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from components.layers.dropout import Dropout
from components.layers.fsmn import FsmnMemory
from components.layers.masking import length_mask
from utils.errors import UserError

Maps = list[Tensor]


class _Attention(nn.Module):
    """Plain multi-head attention of tokens to a memory, or to themselves; the probabilities on demand."""

    def __init__(self, dim: int, memory_dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        if dim % num_heads:
            raise UserError(f"num_heads: {num_heads} heads do not divide {dim} channels")
        self.num_heads, self.dropout = num_heads, dropout
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(memory_dim, 2 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor, maps: Maps | None = None) -> Tensor:
        """`x [B, N, D]`, `memory [B, T, M]`; mask `[B, 1, 1, T]`, True where there is something to attend to."""
        key, value = map(self._heads, self.key_value(memory).chunk(2, dim=-1))
        query = self._heads(self.query(x))
        if maps is not None:
            logits = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
            maps.append(logits.float().masked_fill(~mask, -1e30).softmax(-1) * mask)
        dropout = self.dropout if self.training else 0.0
        attended = scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        return self.out(attended.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        """`[B, L, D]` to `[B, H, L, C]`."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class _TransformerLayer(nn.Module):
    """Self-attention, cross-attention, feed-forward, each behind a LayerNorm and added."""

    def __init__(
        self, dim: int, memory_dim: int, num_heads: int, ff_dim: int, dropout: float, attention_dropout: float
    ):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(3))
        self.self_attention = _Attention(dim, dim, num_heads, attention_dropout)
        self.cross_attention = _Attention(dim, memory_dim, num_heads, attention_dropout)
        self.feed_forward = nn.Sequential(nn.Linear(dim, ff_dim), nn.ReLU(), Dropout(dropout), nn.Linear(ff_dim, dim))
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, own: Tensor, memory: Tensor, mask: Tensor, maps: Maps | None) -> Tensor:
        normed = self.norms[0](x)
        x = x + self.dropout(self.self_attention(normed, normed, own[:, None, None]))
        x = x + self.dropout(self.cross_attention(self.norms[1](x), memory, mask, maps))
        return x + self.dropout(self.feed_forward(self.norms[2](x)))


class _NormedFeedForward(nn.Sequential):
    """Two linear maps with ReLU, dropout and a LayerNorm between them; the second has no bias."""

    def __init__(self, dim: int, ff_dim: int, dropout: float) -> None:
        super().__init__(
            nn.Linear(dim, ff_dim), nn.ReLU(), Dropout(dropout), nn.LayerNorm(ff_dim),
            nn.Linear(ff_dim, dim, bias=False),
        )  # fmt: skip


class _SanmLayer(nn.Module):
    """Feed-forward, then memory block, added as one; then cross-attention, added."""

    def __init__(
        self, dim: int, memory_dim: int, num_heads: int, ff_dim: int, kernel_size: int, dropout: float,
        attention_dropout: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(3))
        self.feed_forward = _NormedFeedForward(dim, ff_dim, dropout)
        self.memory_block = FsmnMemory(dim, kernel_size, dropout=attention_dropout)
        self.cross_attention = _Attention(dim, memory_dim, num_heads, attention_dropout)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, own: Tensor, memory: Tensor, mask: Tensor, maps: Maps | None) -> Tensor:
        around = self.memory_block(self.norms[1](self.feed_forward(self.norms[0](x))), ~own[:, :, None])
        x = x + self.dropout(around)
        return x + self.dropout(self.cross_attention(self.norms[2](x), memory, mask, maps))


class _ParallelDecoder(nn.Module):
    """Layers over all tokens at once.  `dim` is D."""

    def __init__(self, dim: int, layers: list[nn.Module], last: nn.Module, checkpointing: bool) -> None:
        super().__init__()
        self.dim, self.checkpointing = dim, checkpointing
        self.layers, self.last = nn.ModuleList(layers), last

    def forward(
        self, x: Tensor, token_lens: Tensor, memory: Tensor, memory_lens: Tensor, maps: Maps | None = None
    ) -> Tensor:
        """Token embeddings `[B, N, D]` and encoder frames `[B, T, M]` to `[B, N, D]`.

        Args:
            maps: receives what each layer's tokens attend to among the frames: `[B, H, N, T]` a layer.
        """
        own = length_mask(token_lens, x.shape[1])
        mask = length_mask(memory_lens, memory.shape[1])[:, None, None]
        for layer in self.layers:
            if self.checkpointing and self.training and maps is None:
                x = checkpoint(layer, x, own, memory, mask, maps, use_reentrant=False)
            else:
                x = layer(x, own, memory, mask, maps)
        return self.last(x)


class ParallelTransformerDecoder(_ParallelDecoder):
    """Transformer layers without a causal mask: every token attends to every other (arXiv:2206.08317).

    Args:
        memory_dim: M.
        dim: D; None for M.
        num_layers: of self-attention, cross-attention and feed-forward.
        num_heads: H.
        ff_dim: hidden width of the feed-forward.
        dropout: behind every part and inside of the feed-forward.
        attention_dropout: on what is attended to.
        checkpointing: compute layers again in the backward pass instead of keeping what they made.

    Raises:
        UserError: the heads do not divide D.
    """

    def __init__(
        self,
        memory_dim: int,
        dim: int | None = None,
        num_layers: int = 6,
        num_heads: int = 4,
        ff_dim: int = 2048,
        dropout: float = 0.1,
        attention_dropout: float = 0.0,
        checkpointing: bool = False,
    ) -> None:
        dim = dim or memory_dim
        layers = [
            _TransformerLayer(dim, memory_dim, num_heads, ff_dim, dropout, attention_dropout) for _ in range(num_layers)
        ]
        super().__init__(dim, layers, nn.LayerNorm(dim), checkpointing)


class ParallelSanmDecoder(_ParallelDecoder):
    """Layers with a memory block in the place of self-attention (Gao et al. 2020, arXiv:2006.01713), and a last
    feed-forward that is not added: the decoder of large Paraformers.

    Args:
        kernel_size: tokens that a memory block sees, an odd number.
        attention_dropout: on what is attended to, and behind the memory blocks.

    Other arguments and errors: as `ParallelTransformerDecoder`.
    """

    def __init__(
        self,
        memory_dim: int,
        dim: int | None = None,
        num_layers: int = 16,
        num_heads: int = 4,
        ff_dim: int = 2048,
        kernel_size: int = 11,
        dropout: float = 0.1,
        attention_dropout: float = 0.0,
        checkpointing: bool = False,
    ) -> None:
        dim = dim or memory_dim
        layers = [
            _SanmLayer(dim, memory_dim, num_heads, ff_dim, kernel_size, dropout, attention_dropout)
            for _ in range(num_layers)
        ]
        last = nn.Sequential(nn.LayerNorm(dim), _NormedFeedForward(dim, ff_dim, dropout), nn.LayerNorm(dim))
        super().__init__(dim, layers, last, checkpointing)

"""A transformer decoder over tokens, for training and for one token at a time.

Shapes: B batch, K texts of an utterance, N tokens, T encoder frames, H heads, C channels of a head, D model,
V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from components.layers import length_mask
from components.layers.relative_positions import sinusoids

KeyValue = tuple[Tensor, Tensor]


@dataclass
class Memory:
    """What texts attend to: a layer's keys and values `[B, H, T, C]`, and bool `[B, 1, 1, T]`, True at frames."""

    keys: Tensor
    values: Tensor
    valid: Tensor


@dataclass
class DecoderCache:
    """What a decoder keeps between two tokens.

    Attributes:
        memories: of each layer.
        past: of each layer, the keys and values of the tokens so far, `[B, K, H, N, C]`.
        num_tokens: N.
    """

    memories: list[Memory]
    past: list[KeyValue | None]
    num_tokens: int = 0

    def select(self, parents: Tensor) -> None:
        """Text k goes on from what was text `parents[b, k]`, `[B, K]`."""
        rows = torch.arange(len(parents), device=parents.device).unsqueeze(1)
        self.past = [(keys[rows, parents], values[rows, parents]) for keys, values in self.past]


class DecoderLayer(nn.Module):
    """Self-attention, attention to frames, feed-forward, normalised before each (Xiong et al. 2020, arXiv:2002.04745).

    Texts are `[B, K, N, D]`: the K texts of an utterance attend to one copy of its frames. A frame's key knows its
    time, which not every encoder says: what is said twice is else heard at one place.

    Args:
        dim: D.
        hidden_dim: width of the encoder's frames.
        num_heads: H.
        ff_dim: hidden width of the feed-forward.
        dropout: of attention weights and of what each part adds.
    """

    def __init__(self, dim: int, hidden_dim: int, num_heads: int, ff_dim: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.dropout_share = num_heads, dropout
        self.self_norm, self.memory_norm, self.ff_norm = (nn.LayerNorm(dim) for _ in range(3))
        self.query_key_value, self.self_out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.memory_query, self.memory_out = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.memory_key_value, self.memory_time = nn.Linear(hidden_dim, 2 * dim), nn.Linear(dim, dim, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.feed_forward = nn.Sequential(nn.Linear(dim, ff_dim), nn.GELU(), self.dropout, nn.Linear(ff_dim, dim))

    def memory(self, hidden: Tensor, lens: Tensor) -> Memory:
        """The keys and values of `hidden [B, T, hidden_dim]`."""
        times = sinusoids(torch.arange(hidden.shape[1], device=hidden.device), self.memory_time.in_features)
        keys, values = self.memory_key_value(hidden).chunk(2, dim=-1)
        keys = keys + self.memory_time(times.to(keys.dtype))
        return Memory(self._heads(keys), self._heads(values), length_mask(lens, hidden.shape[1])[:, None, None])

    def forward(self, x: Tensor, hidden: Tensor, lens: Tensor) -> Tensor:
        """Whole texts `x [B, K, N, D]`, each token behind those before it, to the same shape."""
        x, _ = self.attend_self(x)
        return self.feed(self.attend_memory(x, self.memory(hidden, lens)))

    def attend_self(self, x: Tensor, past: KeyValue | None = None) -> tuple[Tensor, KeyValue]:
        """Tokens to those before them: whole texts, or with `past` the one token that follows it."""
        query, key, value = (self._heads(part) for part in self.query_key_value(self.self_norm(x)).chunk(3, dim=-1))
        if past is not None:
            key, value = torch.cat([past[0], key], dim=-2), torch.cat([past[1], value], dim=-2)
        attended = scaled_dot_product_attention(
            *(part.flatten(0, 1) for part in (query, key, value)),
            dropout_p=self._attention_dropout,
            is_causal=past is None and x.shape[2] > 1,
        )
        attended = attended.unflatten(0, x.shape[:2]).transpose(2, 3).flatten(3)
        return x + self.dropout(self.self_out(attended)), (key, value)

    def attend_memory(self, x: Tensor, memory: Memory) -> Tensor:
        """Tokens to frames."""
        attended = scaled_dot_product_attention(
            self._memory_queries(x),
            memory.keys,
            memory.values,
            attn_mask=memory.valid,
            dropout_p=self._attention_dropout,
        )
        attended = attended.transpose(1, 2).flatten(2).unflatten(1, x.shape[1:3])
        return x + self.dropout(self.memory_out(attended))

    def feed(self, x: Tensor) -> Tensor:
        """Each token by itself."""
        return x + self.dropout(self.feed_forward(self.ff_norm(x)))

    def memory_weights(self, x: Tensor, memory: Memory) -> Tensor:
        """With which weights `x [B, K, N, D]` attends to the frames: `[B, K, H, N, T]`, float32."""
        query = self._memory_queries(x).float()
        logits = query @ memory.keys.float().transpose(-1, -2) * query.shape[-1] ** -0.5
        weights = logits.masked_fill(~memory.valid, -torch.inf).softmax(-1).nan_to_num(0.0)
        return weights.unflatten(2, x.shape[1:3]).transpose(1, 2)

    def _memory_queries(self, x: Tensor) -> Tensor:
        """All texts of an utterance as so many queries of it: `[B, H, K * N, C]`."""
        return self._heads(self.memory_query(self.memory_norm(x)).flatten(1, 2))

    def _heads(self, x: Tensor) -> Tensor:
        """`[..., N, D]` to `[..., H, N, C]`."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(-2, -3)

    @property
    def _attention_dropout(self) -> float:
        return self.dropout_share if self.training else 0.0


class TransformerDecoder(nn.Module):
    """Tokens and frames in, logits of the next tokens out (Vaswani et al. 2017, arXiv:1706.03762).

    Places of tokens and times of frames are told by sinusoids, so that a text may have any length.

    Args:
        hidden_dim: width of the encoder's frames.
        vocab_size: V.
        dim: D, divisible by `num_heads`.
        num_layers: layers.
        num_heads: H.
        ff_dim: hidden width of the feed-forward.
        dropout: of embedded tokens, attention weights and what each part adds.
        checkpointing: compute each layer again in the backward pass instead of keeping what it made.
    """

    def __init__(
        self,
        hidden_dim: int,
        vocab_size: int,
        dim: int,
        num_layers: int,
        num_heads: int,
        ff_dim: int,
        dropout: float = 0.1,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        assert dim % num_heads == 0, f"{dim} channels are not divisible into {num_heads} heads"
        self.checkpointing = checkpointing
        self.embedding = nn.Embedding(vocab_size, dim)
        self.dropout = nn.Dropout(dropout)
        layers = (DecoderLayer(dim, hidden_dim, num_heads, ff_dim, dropout) for _ in range(num_layers))
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(dim)
        self.output = nn.Linear(dim, vocab_size)

    def forward(self, tokens: Tensor, hidden: Tensor, lens: Tensor) -> Tensor:
        """Logits behind every token: `tokens [B, K, N]`, `hidden [B, T, hidden_dim]`, `lens [B]` to `[B, K, N, V]`."""
        x = self._embed(tokens)
        for layer in self.layers:
            if self.checkpointing and self.training:
                x = checkpoint(layer, x, hidden, lens, use_reentrant=False)
            else:
                x = layer(x, hidden, lens)
        return self._logits(x)

    def start(self, hidden: Tensor, lens: Tensor) -> DecoderCache:
        """A cache before the first token."""
        return DecoderCache([layer.memory(hidden, lens) for layer in self.layers], [None] * len(self.layers))

    def step(self, tokens: Tensor, cache: DecoderCache) -> Tensor:
        """Logits behind one more token of each text, `tokens [B, K]` to `[B, K, V]`; the cache takes it in."""
        x = self._embed(tokens.unsqueeze(-1), cache.num_tokens)
        for number, layer in enumerate(self.layers):
            x, cache.past[number] = layer.attend_self(x, cache.past[number])
            x = layer.feed(layer.attend_memory(x, cache.memories[number]))
        cache.num_tokens += 1
        return self._logits(x).squeeze(2)

    def memory_weights(self, tokens: Tensor, hidden: Tensor, lens: Tensor) -> list[Tensor]:
        """Of each layer, how `tokens [B, K, N]` attend to the frames: `[B, K, H, N, T]`."""
        x = self._embed(tokens)
        weights = []
        for layer in self.layers:
            memory = layer.memory(hidden, lens)
            x, _ = layer.attend_self(x)
            weights.append(layer.memory_weights(x, memory))
            x = layer.feed(layer.attend_memory(x, memory))
        return weights

    def _embed(self, tokens: Tensor, first: int = 0) -> Tensor:
        embedded = self.embedding(tokens)
        places = torch.arange(first, first + tokens.shape[-1], device=tokens.device)
        return self.dropout(embedded + sinusoids(places, embedded.shape[-1]).to(embedded.dtype))

    def _logits(self, x: Tensor) -> Tensor:
        return self.output(self.norm(x))

"""The plain transformer encoder.  Shapes: B batch, T frames, D model."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from components.layers.dropout import Dropout
from components.models.asr.encoders.chunks import Chunks
from components.models.asr.encoders.layer import EncoderLayer, LayerCache, Surroundings, feed_forward, make_attention
from components.models.asr.encoders.stack import EncoderStack
from components.models.asr.subsampling import Conv2dSubsampling, Subsampling


class TransformerEncoder(EncoderStack):
    """Attention and a feed-forward network, normalised before each (Vaswani et al. 2017, arXiv:1706.03762; Xiong et al.
    2020, arXiv:2002.04745).

    Args:
        input_dim: F.
        dim: D.
        num_layers, num_heads: of attention and network.
        feed_forward_dim: hidden width of the network; None: 4 D.
        positions: "sinusoid" (added to the input), "rotary", "relative" (of Transformer-XL), or "none".
        dropout: on what attention and network add, within the network, and on the input.
        attention_dropout: on the weights of attention; costs time and memory.
        subsampling: `(input_dim, dim) -> Subsampling`.
        attention_window: frames of the band that a frame attends to, half of them before it; None: to all.
        chunk_frames: output frames of a chunk in evaluation; None: the whole clip.
        left_chunks: chunks before its own that a frame sees; None: all.
        random_chunks: cut training batches into chunks of random sizes.
        layerdrop: share of the layers that a training forward leaves out.
        gradient_checkpointing: compute the layers again in backward instead of keeping what they need for it.

    Raises:
        UserError: settings that exclude each other or do not exist.
    """

    def __init__(
        self,
        input_dim: int,
        dim: int = 144,
        num_layers: int = 6,
        num_heads: int = 4,
        feed_forward_dim: int | None = None,
        positions: str = "sinusoid",
        dropout: float = 0.1,
        attention_dropout: float = 0.0,
        subsampling: Callable[[int, int], Subsampling] = Conv2dSubsampling,
        attention_window: int | None = None,
        chunk_frames: int | None = None,
        left_chunks: int | None = None,
        random_chunks: bool = False,
        layerdrop: float = 0.0,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__(
            subsample=subsampling(input_dim, dim),
            layers=[
                TransformerLayer(dim, num_heads, feed_forward_dim or 4 * dim, positions, dropout, attention_dropout)
                for _ in range(num_layers)
            ],
            norm=nn.LayerNorm(dim),
            dim=dim,
            positions=positions,
            causal=True,
            input_dropout=dropout,
            attention_window=attention_window,
            chunks=Chunks(chunk_frames, left_chunks, random_chunks),
            layerdrop=layerdrop,
            gradient_checkpointing=gradient_checkpointing,
        )


class TransformerLayer(EncoderLayer):
    """Attention, then a feed-forward network, each on what is normalised, added to what is not."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        feed_forward_dim: int,
        positions: str,
        dropout: float,
        attention_dropout: float,
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = make_attention(dim, num_heads, positions, attention_dropout)
        self.network_norm = nn.LayerNorm(dim)
        self.network = feed_forward(dim, feed_forward_dim, nn.ReLU(), dropout)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, surroundings: Surroundings, cache: LayerCache | None = None) -> Tensor:
        """`[B, T, D]` to the same."""
        kept = None if cache is None else cache.attention
        attended = self.attention(self.attention_norm(x), surroundings.mask, surroundings.positions, kept)
        x = x + self.dropout(attended)
        return x + self.dropout(self.network(self.network_norm(x)))

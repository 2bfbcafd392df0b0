"""The Conformer.  Shapes: B batch, T frames, D model."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from components.layers.convolution_module import ConvolutionModule
from components.layers.dropout import Dropout
from components.models.asr.encoders.chunks import Chunks
from components.models.asr.encoders.layer import EncoderLayer, LayerCache, Surroundings, feed_forward, make_attention
from components.models.asr.encoders.stack import EncoderStack
from components.models.asr.subsampling import Conv2dSubsampling, Subsampling


class ConformerEncoder(EncoderStack):
    """Convolution-augmented transformer (Gulati et al. 2020, arXiv:2005.08100).

    Args:
        input_dim: F.
        dim: D.
        num_layers: blocks.
        num_heads: of attention.
        feed_forward_dim: hidden width of the two half-step networks; None: 4 D.
        kernel_size: frames of the depthwise convolution.
        norm: behind it: "batch", "layer" or "group"; all of them over true frames only.
        positions: "relative" (of Transformer-XL), "rotary", "sinusoid" (added to the input), or "none".
        causal: convolutions see nothing ahead, as streaming needs.
        dropout: on what each part of a layer adds, within its networks, and on the input.
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
        num_layers: int = 4,
        num_heads: int = 4,
        feed_forward_dim: int | None = None,
        kernel_size: int = 15,
        norm: str = "batch",
        positions: str = "relative",
        causal: bool = False,
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
                ConformerLayer(
                    dim, num_heads, feed_forward_dim or 4 * dim, kernel_size, norm, positions, causal, dropout,
                    attention_dropout,
                )
                for _ in range(num_layers)
            ],
            norm=nn.Identity(),
            dim=dim,
            positions=positions,
            causal=causal,
            input_dropout=dropout,
            attention_window=attention_window,
            chunks=Chunks(chunk_frames, left_chunks, random_chunks),
            layerdrop=layerdrop,
            gradient_checkpointing=gradient_checkpointing,
        )  # fmt: skip


class ConformerLayer(EncoderLayer):
    """Half a feed-forward step, attention, convolution, another half step, and normalisation (figure 1)."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        feed_forward_dim: int,
        kernel_size: int,
        norm: str,
        positions: str,
        causal: bool,
        dropout: float,
        attention_dropout: float,
    ) -> None:
        super().__init__()
        self.first_norm, self.first = nn.LayerNorm(dim), feed_forward(dim, feed_forward_dim, nn.SiLU(), dropout)
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = make_attention(dim, num_heads, positions, attention_dropout)
        self.convolution_norm = nn.LayerNorm(dim)
        self.convolution = ConvolutionModule(dim, kernel_size, norm, causal)
        self.second_norm, self.second = nn.LayerNorm(dim), feed_forward(dim, feed_forward_dim, nn.SiLU(), dropout)
        self.norm = nn.LayerNorm(dim)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, surroundings: Surroundings, cache: LayerCache | None = None) -> Tensor:
        """`[B, T, D]` to the same."""
        kept = (None, None) if cache is None else (cache.attention, cache.convolution)
        x = torch.add(x, self.dropout(self.first(self.first_norm(x))), alpha=0.5)
        attended = self.attention(self.attention_norm(x), surroundings.mask, surroundings.positions, kept[0])
        x = x + self.dropout(attended)
        x = x + self.dropout(self.convolution(self.convolution_norm(x), surroundings.padding, kept[1]))
        x = torch.add(x, self.dropout(self.second(self.second_norm(x))), alpha=0.5)
        return self.norm(x)

"""The encoder of Paraformer.  Shapes: B batch, T frames, F features, D model."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from components.layers.depthwise_conv import FrameCache
from components.layers.dropout import Dropout
from components.layers.fsmn import FsmnMemory
from components.layers.self_attention import KeyValueCache, SelfAttention
from components.models.asr.encoders.chunks import Chunks
from components.models.asr.encoders.layer import EncoderLayer, LayerCache, Surroundings, feed_forward
from components.models.asr.encoders.stack import EncoderStack
from components.models.asr.subsampling import NoSubsampling, Subsampling


class SanmEncoder(EncoderStack):
    """Self-attention with a memory block (Gao et al. 2020, arXiv:2006.01713), as in Paraformer (arXiv:2206.08317).

    Its features are stacked frames at a low rate, 7 x 80 every 60 ms, scaled by the root of D, plus sinusoids; the
    first layer takes them to D and has then nothing to add its attention to.

    Args:
        input_dim: F.
        dim: D.
        num_layers, num_heads: of attention and network.
        feed_forward_dim: hidden width of the network; None: 4 D.
        kernel_size: frames of the memory block.
        causal: the memory block sees nothing ahead, as streaming needs; else half of its frames.
        dropout: on what attention and network add, on the memory, and within the network.
        attention_dropout: on the weights of attention; costs time and memory.
        subsampling: `(input_dim, dim) -> Subsampling`, where the features are not stacked already.
        attention_window: frames of the band that a frame attends to, half of them before it; None: to all.
        chunk_frames: output frames of a chunk in evaluation; None: the whole clip.
        left_chunks: chunks before its own that a frame sees; None: all.
        random_chunks: cut training batches into chunks of random sizes.
        layerdrop: share of the layers that a training forward leaves out; the first stays.
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
        kernel_size: int = 11,
        causal: bool = False,
        dropout: float = 0.1,
        attention_dropout: float = 0.0,
        subsampling: Callable[[int, int], Subsampling] = NoSubsampling,
        attention_window: int | None = None,
        chunk_frames: int | None = None,
        left_chunks: int | None = None,
        random_chunks: bool = False,
        layerdrop: float = 0.0,
        gradient_checkpointing: bool = False,
    ) -> None:
        subsample = subsampling(input_dim, dim)
        first_dim = input_dim if isinstance(subsample, NoSubsampling) else dim
        hidden_dim = feed_forward_dim or 4 * dim
        super().__init__(
            subsample=subsample,
            layers=[
                SanmLayer(
                    dim if number else first_dim, dim, num_heads, hidden_dim, kernel_size, causal, dropout,
                    attention_dropout,
                )
                for number in range(num_layers)
            ],
            norm=nn.LayerNorm(dim),
            dim=dim,
            positions="sinusoid",
            causal=causal,
            input_dropout=0.0,
            attention_window=attention_window,
            chunks=Chunks(chunk_frames, left_chunks, random_chunks),
            layerdrop=layerdrop,
            gradient_checkpointing=gradient_checkpointing,
        )  # fmt: skip

    def _through(self, layer: EncoderLayer, x: Tensor, surroundings: Surroundings) -> Tensor:
        # Without the layer that changes the width there is nothing that the next one could take.
        if x.shape[-1] != self.output_dim:
            return layer(x, surroundings)
        return super()._through(layer, x, surroundings)


class SanmLayer(EncoderLayer):
    """Attention with memory, then a feed-forward network, normalised before each."""

    def __init__(
        self,
        input_dim: int,
        dim: int,
        num_heads: int,
        feed_forward_dim: int,
        kernel_size: int,
        causal: bool,
        dropout: float,
        attention_dropout: float,
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(input_dim)
        self.attention = SanmAttention(dim, num_heads, input_dim, kernel_size, causal, dropout, attention_dropout)
        self.network_norm = nn.LayerNorm(dim)
        self.network = feed_forward(dim, feed_forward_dim, nn.ReLU(), dropout)
        self.dropout = Dropout(dropout)
        self.keeps_width = input_dim == dim

    def forward(self, x: Tensor, surroundings: Surroundings, cache: LayerCache | None = None) -> Tensor:
        """`[B, T, input_dim]` to `[B, T, D]`."""
        attended = self.attention.with_memory(self.attention_norm(x), surroundings, cache)
        attended = self.dropout(attended)
        x = x + attended if self.keeps_width else attended
        return x + self.dropout(self.network(self.network_norm(x)))


class SanmAttention(SelfAttention):
    """Attention to whose output the memory of its values is added."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        input_dim: int,
        kernel_size: int,
        causal: bool,
        dropout: float,
        attention_dropout: float,
    ) -> None:
        super().__init__(dim, num_heads, input_dim, attention_dropout)
        self.memory = FsmnMemory(dim, kernel_size, kernel_size - 1 if causal else None, dropout)

    def with_memory(self, x: Tensor, surroundings: Surroundings, cache: LayerCache | None = None) -> Tensor:
        """`[B, T, input_dim]` to `[B, T, D]`."""
        kept: tuple[KeyValueCache | None, FrameCache | None] = (None, None)
        if cache is not None:
            kept = cache.attention, cache.convolution
        projected = self.query_key_value(x)
        query, key, value = self._heads(projected)
        memory = self.memory(projected.chunk(3, dim=-1)[2], surroundings.padding, kept[1])
        if kept[0] is not None:
            key, value = kept[0].extend(key, value)
        return self.out(self._mix(query, key, value, surroundings.mask)) + memory

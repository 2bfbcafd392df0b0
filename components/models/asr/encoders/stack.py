"""Subsampling, layers, normalisation: what the encoders with attention of our own are made of.

Shapes: B batch, L input frames, T output frames, S keys, F features, D model.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from components.layers.dropout import Dropout
from components.layers.frame_norm import frozen_statistics
from components.layers.relative_positions import distance_sinusoids, sinusoids
from components.layers.rotary import rotary_tables
from components.layers.visible_frames import attention_mask, padding_of, visible_frames
from components.models.asr.encoders.base import SpeechEncoder, recording
from components.models.asr.encoders.chunks import Chunks
from components.models.asr.encoders.layer import EncoderLayer, Surroundings
from components.models.asr.encoders.streaming import EncoderStream
from components.models.asr.subsampling import Subsampling
from components.models.asr.types import Encoded
from utils.errors import UserError


class EncoderStack(SpeechEncoder):
    """An encoder of layers.

    Args:
        subsample: what makes frames of features.
        layers: what they go through.
        norm: what the output of any of them goes through.
        dim: D.
        positions: one of `POSITIONS`.
        causal: whether the layers, attention aside, see nothing ahead.
        input_dropout: in front of the first layer.
        attention_window: frames of the band that a frame attends to; None: to all.
        chunks: how attention is cut into chunks.
        layerdrop: share of the layers that a training forward leaves out (Fan et al. 2019, arXiv:1909.11556).
        gradient_checkpointing: see `gradient_checkpointing_enable`.

    Raises:
        UserError: settings that exclude each other.
    """

    def __init__(
        self,
        subsample: Subsampling,
        layers: Iterable[EncoderLayer],
        norm: nn.Module,
        dim: int,
        positions: str,
        causal: bool,
        input_dropout: float,
        attention_window: int | None,
        chunks: Chunks,
        layerdrop: float,
        gradient_checkpointing: bool,
    ) -> None:
        super().__init__()
        self.subsample, self.layers, self.norm = subsample, nn.ModuleList(layers), norm
        self.output_dim, self.subsampling, self.num_layers = dim, subsample.factor, len(self.layers)
        self.positions, self.causal, self.chunks = positions, causal, chunks
        self.dropout = Dropout(input_dropout)
        self.attention_window, self.layerdrop = attention_window, layerdrop
        self.gradient_checkpointing = gradient_checkpointing
        if positions == "rotary" and dim // self.layers[0].attention.num_heads % 2:
            raise UserError(f"positions: rotary ones need an even number of channels in a head; dim is {dim}")
        if chunks.in_use:
            self._check_causal()

    def output_lens(self, feature_lens: Tensor) -> Tensor:
        """T: `ceil(L / subsampling)`."""
        return self.subsample.output_lens(feature_lens)

    def forward(
        self,
        features: Tensor,
        feature_lens: Tensor,
        layers: Collection[int] = (),
        chunk: tuple[int, int | None] | None = None,
    ) -> Encoded:
        """`features [B, L, F]`, anything in the padding, `feature_lens [B]`, to `Encoded`.

        Args:
            layers: numbers of the layers whose outputs are wanted too, normalised as the last one's.
            chunk: frames of a chunk, and chunks before its own that a frame sees, None: all; by default as the encoder
                was told.

        Raises:
            UserError: there is no layer of a number, or chunks in an encoder that looks ahead.
        """
        self._check(layers)
        x, lens = self.subsample(features, feature_lens)
        surroundings = self._surroundings(x, lens, self.chunks.draw(self.training) if chunk is None else chunk)
        x = self.embed(x)
        inner: dict[int, Tensor] = {}
        for number, layer in enumerate(self.layers, 1):
            x = self._through(layer, x, surroundings)
            if number in layers:
                inner[number] = self._finished(x, surroundings)
        hidden = inner[self.num_layers] if self.num_layers in inner else self._finished(x, surroundings)
        return Encoded(hidden, lens, inner)

    def stream(
        self, chunk_frames: int | None = None, left_chunks: int | None = None, feature_seconds: float = 0.01
    ) -> EncoderStream:
        """The encoder for features as they come; equals `forward(..., chunk=(chunk_frames, left_chunks))`.

        Args:
            chunk_frames: output frames of a chunk; None for the encoder's own setting, and its `left_chunks`.
            left_chunks: chunks before its own that a frame sees; None: all.
            feature_seconds: of an input frame.

        Raises:
            UserError: the encoder looks ahead, is in training mode, or has no size of a chunk.
        """
        self._check_causal()
        if self.training:
            raise UserError("stream: the encoder is in training mode, call eval() first")
        if chunk_frames is None:
            if self.chunks.frames is None:
                raise UserError("stream: the encoder has no chunk_frames: say how many")
            chunk_frames, left_chunks = self.chunks.frames, self.chunks.left
        return EncoderStream(self, chunk_frames, left_chunks, feature_seconds)

    def record_attention(self) -> AbstractContextManager[dict[int, Tensor]]:
        return recording([layer.attention for layer in self.layers])

    def gradient_checkpointing_enable(self) -> None:
        self.gradient_checkpointing = True

    def embed(self, x: Tensor, first: int = 0) -> Tensor:
        """What goes into the layers: `x [B, T, *]`, whose first frame is number `first`, with absolute positions."""
        if self.positions == "sinusoid":
            places = torch.arange(first + 1, first + 1 + x.shape[1], device=x.device)
            x = x * self.output_dim**0.5 + sinusoids(places, x.shape[2]).to(x.dtype)
        return self.dropout(x)

    def position_tables(self, num_queries: int, num_keys: int, device: torch.device):
        """What the attention takes as positions."""
        if self.positions == "relative":
            return distance_sinusoids(num_queries, num_keys, self.output_dim, device)
        if self.positions == "rotary":
            return rotary_tables(num_keys, self.output_dim // self.layers[0].attention.num_heads, device)
        return None

    def _surroundings(self, x: Tensor, lens: Tensor, chunk: tuple[int, int | None] | None) -> Surroundings:
        padding, visible = padding_of(lens, x.shape[1]), None
        if chunk is not None:
            self._check_causal()
        if chunk is not None or self.attention_window is not None:
            places = torch.arange(x.shape[1], device=x.device)
            visible = visible_frames(places, places, self.attention_window, *(chunk or (None, None)))
        return Surroundings(
            padding=None if padding is None else padding.unsqueeze(-1),
            mask=attention_mask(padding, visible),
            positions=self.position_tables(x.shape[1], x.shape[1], x.device),
        )

    def _through(self, layer: EncoderLayer, x: Tensor, surroundings: Surroundings) -> Tensor:
        if self.training and self.layerdrop and float(torch.rand(())) < self.layerdrop:
            # Parameters without a gradient would stop DDP: these get zeros.
            return x + 0 * torch.stack([parameter.flatten()[0] for parameter in layer.parameters()]).sum()
        if self.training and self.gradient_checkpointing:
            return checkpoint(layer, x, surroundings, use_reentrant=False, context_fn=_first_and_second)
        return layer(x, surroundings)

    def _finished(self, x: Tensor, surroundings: Surroundings) -> Tensor:
        x = self.norm(x)
        return x if surroundings.padding is None else x.masked_fill(surroundings.padding, 0)

    def _check_causal(self) -> None:
        if not self.causal:
            raise UserError("chunks: the convolutions of this encoder look ahead of a chunk; set causal: true")


def _first_and_second() -> tuple[AbstractContextManager, AbstractContextManager]:
    return nullcontext(), frozen_statistics()

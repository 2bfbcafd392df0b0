"""Encoders for sound as it comes.  Shapes: B batch, l input frames at hand, t output frames that are ready, F, D."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from components.layers.self_attention import KeyValueCache
from components.layers.visible_frames import visible_frames
from components.models.asr.encoders.layer import LayerCache, Surroundings

if TYPE_CHECKING:
    from components.models.asr.encoders.stack import EncoderStack


class EncoderStream:
    """Chunks of features in, the hidden frames that are ready out; as `forward` with the same chunks would have them.

    All of a batch is equally long: streams that end at different times are streams of their own.

    Attributes:
        latency: seconds from the beginning of a chunk until its hidden frames are out, computing aside: what it lasts,
            and what the subsampling looks ahead.
    """

    def __init__(
        self, encoder: EncoderStack, chunk_frames: int, left_chunks: int | None, feature_seconds: float
    ) -> None:
        self._encoder, self._chunk_frames = encoder, chunk_frames
        self._subsampling = encoder.subsample.stream()
        limits = [None if left_chunks is None else left_chunks * chunk_frames]
        if encoder.attention_window is not None:
            limits.append(encoder.attention_window // 2)
        limit = min((frames for frames in limits if frames is not None), default=None)
        self._caches = [LayerCache(KeyValueCache(limit)) for _ in encoder.layers]
        self._waiting: Tensor | None = None
        self._num_done = 0
        needed = encoder.subsampling * (chunk_frames - 1) + encoder.subsample.look_ahead + 1
        self.latency = needed * feature_seconds

    @torch.no_grad()
    def push(self, features: Tensor) -> Tensor:
        """`[B, l, F]`, any number of frames, to `[B, t, D]`, `t` a multiple of the chunk or 0."""
        self._hold(self._subsampling.push(features))
        full = self._waiting.shape[1] - self._waiting.shape[1] % self._chunk_frames
        return self._encode(full)

    @torch.no_grad()
    def finish(self) -> Tensor:
        """`[B, t, D]`: the frames of the last chunk, which may be shorter; nothing may be pushed behind it.

        `[1, 0, D]` where nothing ever was.
        """
        if self._waiting is None:
            return next(self._encoder.parameters()).new_zeros(1, 0, self._encoder.output_dim)
        self._hold(self._subsampling.finish())
        return self._encode(self._waiting.shape[1])

    def _hold(self, x: Tensor) -> None:
        self._waiting = x if self._waiting is None else torch.cat([self._waiting, x], dim=1)

    def _encode(self, num_frames: int) -> Tensor:
        ready, self._waiting = self._waiting[:, :num_frames], self._waiting[:, num_frames:]
        if not num_frames:
            return ready.new_zeros(len(ready), 0, self._encoder.output_dim)
        return torch.cat([self._chunk(x) for x in ready.split(self._chunk_frames, dim=1)], dim=1)

    def _chunk(self, x: Tensor) -> Tensor:
        encoder, num_kept = self._encoder, self._caches[0].attention.num_frames
        mask = None
        if encoder.attention_window is not None:
            places = torch.arange(num_kept + x.shape[1], device=x.device)
            mask = visible_frames(places[num_kept:], places, encoder.attention_window)
        positions = encoder.position_tables(x.shape[1], num_kept + x.shape[1], x.device)
        x = encoder.embed(x, self._num_done)
        self._num_done += x.shape[1]
        for layer, cache in zip(encoder.layers, self._caches):
            x = layer(x, Surroundings(None, mask, positions), cache)
        return encoder.norm(x)

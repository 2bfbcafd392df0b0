"""What all content encoders have in common.  Shapes: B batch, S tokens or frames, E width of what comes out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from components.layers import length_mask
from components.models.audio_generator.conditions import Stream


class ContentEncoder(nn.Module, ABC):
    """One field of a batch to a stream of vectors; each item of a padded batch as if it stood alone.

    Attributes:
        embed_dim: E.
        more_fields: further fields of the batch that `forward` takes by their names.
    """

    embed_dim: int
    more_fields: tuple[str, ...] = ()

    @abstractmethod
    def forward(self, entry: Any, lens: Tensor | None = None, **fields: Any) -> Stream:
        """The field, its lengths `[B]` where the batch has some, and `more_fields`, to `[B, S, E]` or `[B, E]`."""


def mean_pool(stream: Stream) -> Stream:
    """The mean of each item's own tokens, `[B, S, E]` to `[B, E]`; zero for an item without; vectors stay."""
    if stream.lens is None:
        return stream
    total = zero_behind(stream.values, stream.lens).sum(1)
    return Stream(total / stream.lens.clamp(min=1).unsqueeze(1).to(total.dtype), None)


def zero_behind(values: Tensor, lens: Tensor) -> Tensor:
    """`[B, S, E]`, zero behind each item's last token."""
    return values.masked_fill(~length_mask(lens, values.shape[1]).unsqueeze(-1), 0)


def padding_mask_of(lens: Tensor, num_tokens: int) -> Tensor | None:
    """`[B, num_tokens]`, True where there is nothing; None where it is known, without waiting for a device, that
    everything is full."""
    if lens.device.type == "cpu" and bool((lens >= num_tokens).all()):
        return None
    return ~length_mask(lens, num_tokens)

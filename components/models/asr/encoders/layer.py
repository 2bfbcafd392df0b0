"""A layer of an encoder, and what it is told.  Shapes: B batch, T frames, S keys, H heads, D model."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field

from torch import Tensor, nn

from components.layers.depthwise_conv import FrameCache
from components.layers.dropout import Dropout
from components.layers.self_attention import KeyValueCache, RelativeAttention, SelfAttention
from utils.errors import UserError

POSITIONS = ("relative", "rotary", "sinusoid", "none")


@dataclass(frozen=True)
class Surroundings:
    """What every layer is told of the frames it is given.

    Attributes:
        padding: bool `[B, T, 1]`, True where there is nothing; None: there is something everywhere.
        mask: of attention, bool, broadcast to `[B, H, T, S]`; None: all see all.
        positions: what the attention takes.
    """

    padding: Tensor | None
    mask: Tensor | None
    positions: Tensor | tuple[Tensor, Tensor] | None


@dataclass
class LayerCache:
    """What a layer keeps of the frames before those at hand."""

    attention: KeyValueCache
    convolution: FrameCache = field(default_factory=FrameCache)


class EncoderLayer(nn.Module):
    """A layer with one self-attention, called `attention`."""

    attention: SelfAttention

    @abstractmethod
    def forward(self, x: Tensor, surroundings: Surroundings, cache: LayerCache | None = None) -> Tensor:
        """`[B, T, D]` to the same; what is in the padding may change, but changes nothing else."""


def make_attention(dim: int, num_heads: int, positions: str, attention_dropout: float) -> SelfAttention:
    """The self-attention that goes with `positions`.

    Raises:
        UserError: `positions` is not one of `POSITIONS`, or the heads do not divide `dim`.
    """
    if positions not in POSITIONS:
        raise UserError(f"positions: expected one of {', '.join(POSITIONS)}, got {positions!r}")
    kind = RelativeAttention if positions == "relative" else SelfAttention
    return kind(dim, num_heads, attention_dropout=attention_dropout)


def feed_forward(dim: int, hidden_dim: int, activation: nn.Module, dropout: float) -> nn.Sequential:
    """Two linear maps, `[..., D]` to the same, with an activation and dropout between."""
    return nn.Sequential(nn.Linear(dim, hidden_dim), activation, Dropout(dropout), nn.Linear(hidden_dim, dim))

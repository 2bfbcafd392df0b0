"""Attention of frames to frames, whole or as they come.  Shapes: B batch, L queries, S keys, H heads, C channels of a
head, D model."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from components.layers.dropout import Dropout
from components.layers.relative_positions import by_key
from components.layers.rotary import rotate
from utils.errors import UserError


class KeyValueCache:
    """Keys and values of the frames before those at hand.

    Args:
        max_frames: how many are kept; None: all.
    """

    def __init__(self, max_frames: int | None = None) -> None:
        self.max_frames = max_frames
        self._kept: tuple[Tensor, Tensor] | None = None

    @property
    def num_frames(self) -> int:
        """Frames that are kept."""
        return 0 if self._kept is None else self._kept[0].shape[2]

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """`[B, H, L, C]` each, behind what is kept: `[B, H, S, C]`; the last frames of these are kept."""
        if self._kept is not None:
            key, value = (torch.cat([old, new], dim=2) for old, new in zip(self._kept, (key, value)))
        first = 0 if self.max_frames is None else max(0, key.shape[2] - self.max_frames)
        self._kept = key[:, :, first:], value[:, :, first:]
        return key, value


class SelfAttention(nn.Module):
    """Multi-head attention of frames to themselves, with one projection for queries, keys and values.

    Args:
        dim: D, divisible by `num_heads`.
        num_heads: H.
        input_dim: width of what comes in; None for D.
        attention_dropout: of the weights.

    Attributes:
        recorder: given the weights `[B, H, L, S]` of every call, where it is not None.

    Raises:
        UserError: the heads do not divide D.
    """

    def __init__(self, dim: int, num_heads: int, input_dim: int | None = None, attention_dropout: float = 0.0) -> None:
        super().__init__()
        if dim % num_heads:
            raise UserError(f"num_heads: {num_heads} heads do not divide {dim} channels")
        self.num_heads, self.dropout = num_heads, Dropout(attention_dropout)
        self.query_key_value = nn.Linear(input_dim or dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.recorder: Callable[[Tensor], None] | None = None

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        positions: tuple[Tensor, Tensor] | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """`x [B, L, input_dim]` to `[B, L, D]`.

        Args:
            mask: bool, True where a query may look, broadcast to `[B, H, L, S]`.
            positions: tables of `rotary_tables(S, C)`, where the queries stand at the last L; None: no positions.
            cache: frames before `x`, to which S counts too.
        """
        query, key, value = self._heads(self.query_key_value(x))
        if cache is not None:
            key, value = cache.extend(key, value)
        return self.out(self._attend(query, key, value, mask, positions))

    def _heads(self, projected: Tensor) -> tuple[Tensor, ...]:
        """`[B, L, 3 D]` to three of `[B, H, L, C]`."""
        return projected.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, positions) -> Tensor:
        """`[B, H, L, C]`, `[B, H, S, C]` twice, to `[B, L, D]`."""
        if positions is not None:
            query = rotate(query, tuple(table[-query.shape[2] :] for table in positions))
            key = rotate(key, positions)
        return self._mix(query, key, value, mask)

    def _mix(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """As `_attend`, without positions."""
        rate = self.dropout.p if self.training else 0.0
        # With dropout torch has no kernel of its own on a CPU.
        if self.recorder is not None or (rate and query.device.type == "cpu"):
            return self._mix_by(query * query.shape[-1] ** -0.5 @ key.mT, value, mask)
        mixed = scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=rate)
        return mixed.transpose(1, 2).flatten(2)

    def _mix_by(self, scores: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Scores `[B, H, L, S]`, which are written over, `[B, H, S, C]`, to `[B, L, D]`."""
        if mask is not None:  # added, it costs backward nothing
            scores = scores.add_(scores.new_zeros(mask.shape).masked_fill_(~mask, -torch.inf))
        weights = scores.softmax(-1)
        if self.recorder is not None:
            self.recorder(weights.detach())
        return (self.dropout(weights).to(value.dtype) @ value).transpose(1, 2).flatten(2)


class RelativeAttention(SelfAttention):
    """Self-attention whose scores know how far apart two frames are (Dai et al. 2019, arXiv:1901.02860, 3.3).

    `positions` of `forward` are `distance_sinusoids(L, S, D)`.
    """

    def __init__(self, dim: int, num_heads: int, input_dim: int | None = None, attention_dropout: float = 0.0) -> None:
        super().__init__(dim, num_heads, input_dim, attention_dropout)
        self.distance = nn.Linear(dim, dim, bias=False)
        self.content_bias = nn.Parameter(torch.zeros(num_heads, 1, dim // num_heads))
        self.distance_bias = nn.Parameter(torch.zeros(num_heads, 1, dim // num_heads))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, positions: Tensor) -> Tensor:
        # No kernel of torch's has gradients for what is added to the scores and is faster than its parts.
        query = query * query.shape[-1] ** -0.5
        scores = (query + self.content_bias * query.shape[-1] ** -0.5) @ key.mT
        scores = scores.add_(by_key(self._distance_scores(query, positions), key.shape[2]))
        return self._mix_by(scores, value, mask)

    def _distance_scores(self, query: Tensor, positions: Tensor) -> Tensor:
        """Scores of scaled queries `[B, H, L, C]` and distances, `[B, H, L, L + S - 1]`."""
        distances = self.distance(positions.to(self.distance.weight.dtype))
        distances = distances.unflatten(-1, (self.num_heads, -1)).permute(1, 2, 0)  # [H, C, L + S - 1]
        query = (query + self.distance_bias * query.shape[-1] ** -0.5).transpose(0, 1)
        # One product for all clips: there is no gradient of each clip to be summed.
        return (query.flatten(1, 2) @ distances).unflatten(1, query.shape[1:3]).transpose(0, 1)

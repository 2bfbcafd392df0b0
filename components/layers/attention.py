"""Multi-head attention.  Shapes: B batch, L queries, S keys, H heads, C channels of a head, D model."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import rms_norm, scaled_dot_product_attention

from components.layers.rotary import rotate


class RmsNorm(nn.RMSNorm):
    """Root mean square normalisation (Zhang & Sennrich 2019, arXiv:1910.07467), in the precision of its input."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__(dim, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., D]`, normalised over D."""
        return rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class Attention(nn.Module):
    """Attention of frames to themselves, or to a context, with normalised queries and keys.

    RMSNorm on queries and keys bounds the logits (Dehghani et al. 2023, arXiv:2302.05442, section 3); without padding
    the scaled dot product gets no mask, so that the fastest kernel is chosen.

    Args:
        dim: D, divisible by `num_heads`.
        num_heads: H.
        context_dim: width of what is attended to; None for D.
    """

    def __init__(self, dim: int, num_heads: int, context_dim: int | None = None) -> None:
        super().__init__()
        assert dim % num_heads == 0, f"{num_heads} heads do not divide {dim} channels"
        self.num_heads = num_heads
        self.query = nn.Linear(dim, dim, bias=False)
        self.key_value = nn.Linear(context_dim or dim, 2 * dim, bias=False)
        self.query_norm = RmsNorm(dim // num_heads)
        self.key_norm = RmsNorm(dim // num_heads)
        self.out = nn.Linear(dim, dim)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        padding_mask: Tensor | None = None,
        rotary: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """`x [B, L, D]` to `[B, L, D]`.

        Args:
            context: `[B, S, context_dim]`; None for `x`.
            padding_mask: `[B, S]`, True where there is nothing to attend to; a query that may attend to nothing gets 0
                in front of the output's bias.
            rotary: tables of `rotary_tables`, for queries and keys alike (of `x` itself, then).
        """
        key, value = self.key_value(x if context is None else context).chunk(2, dim=-1)
        query, key, value = self._heads(self.query(x)), self._heads(key), self._heads(value)
        query, key = self.query_norm(query), self.key_norm(key)
        if rotary is not None:
            query, key = rotate(query, rotary), rotate(key, rotary)
        mask = None if padding_mask is None else ~padding_mask[:, None, None, :]
        attended = scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.out(attended.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        """`[B, L, D]` to `[B, H, L, C]`."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

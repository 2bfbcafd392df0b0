"""The instruction as a prefix of the content.  Shapes: B batch, S content tokens, N instruction tokens, E model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from components.layers import Attention, FeedForward, length_mask, rotary_tables
from components.models.audio_generator.adapters.output import AdapterOutput
from components.models.audio_generator.adapters.streams import with_lens
from components.models.audio_generator.conditions import Stream
from components.models.audio_generator.durations import TokenDurations, TotalDuration, scale_gradient


class EncoderLayer(nn.Module):
    """Self-attention and a per-token network, normalised in front of each (Xiong et al. 2020, arXiv:2002.04745)."""

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = Attention(dim, num_heads)
        self.mlp = FeedForward(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, padding_mask: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """`[B, L, E]`, `[B, L]` to `[B, L, E]`."""
        x = x + self.dropout(self.attention(self.attention_norm(x), padding_mask=padding_mask, rotary=rotary))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


class PrefixAdapter(nn.Module):
    """A transformer over `[instruction, one token of its own, content]`; that token tells the total duration.

    The three are packed without padding between, so that positions do not depend on the batch.

    Args:
        content_dim, instruction_dim: widths of the streams.
        dim: E, the width inside and of what comes out.
        num_layers, num_heads: of the transformer.
        dropout: in it, and in the predictors of durations.
        duration_grad_scale: the share of the durations' gradient that reaches the content.
        duration_dim, duration_layers: of the convolutions that predict the tokens' durations.
    """

    def __init__(
        self,
        content_dim: int,
        instruction_dim: int,
        dim: int = 128,
        num_layers: int = 2,
        num_heads: int = 4,
        dropout: float = 0.1,
        duration_grad_scale: float = 0.1,
        duration_dim: int = 128,
        duration_layers: int = 2,
    ) -> None:
        super().__init__()
        self.embed_dim, self.duration_grad_scale, self.head_dim = dim, duration_grad_scale, dim // num_heads
        self.content = nn.Linear(content_dim, dim)
        self.instruction = nn.Linear(instruction_dim, dim)
        self.types = nn.Parameter(0.5 * torch.randn(3, dim))  # instruction, the total's token, content
        self.layers = nn.ModuleList(EncoderLayer(dim, num_heads, dropout) for _ in range(num_layers))
        self.norm = nn.LayerNorm(dim)
        self.token_durations = TokenDurations(dim, duration_dim, duration_layers, dropout)
        self.total_duration = TotalDuration(dim, dropout)
        self.out = nn.Linear(dim, dim)

    def forward(self, content: Stream, instruction: Stream) -> AdapterOutput:
        """Streams `[B, S, content_dim]` and `[B, N, instruction_dim]`; padding is never seen."""
        (values, lens), (prefix, prefix_lens) = with_lens(content), with_lens(instruction)
        prefix = self.instruction(prefix) + self.types[0]
        total = self.types[1].expand(len(values), 1, -1).to(prefix.dtype)
        x = torch.cat([prefix, total, self.content(values) + self.types[2]], dim=1)
        real = torch.cat(
            [
                length_mask(prefix_lens, prefix.shape[1]),
                torch.ones_like(lens, dtype=torch.bool).unsqueeze(1),
                length_mask(lens, values.shape[1]),
            ],
            dim=1,
        )
        x = self.norm(self._encode(x, real))
        total, tokens = x[:, prefix.shape[1]], x[:, prefix.shape[1] + 1 :]
        padding = ~real[:, prefix.shape[1] + 1 :].unsqueeze(-1)
        return AdapterOutput(
            Stream(self.out(tokens).masked_fill(padding, 0), lens),
            self.token_durations(scale_gradient(tokens, self.duration_grad_scale), lens),
            self.total_duration(scale_gradient(total, self.duration_grad_scale)),
        )

    def _encode(self, x: Tensor, real: Tensor) -> Tensor:
        """Through the layers with padding last, and back to where everything was."""
        order = torch.argsort(real, dim=1, descending=True, stable=True)
        x = torch.take_along_dim(x, order.unsqueeze(-1), dim=1)
        padding_mask = ~real.gather(1, order)
        rotary = rotary_tables(x.shape[1], self.head_dim, x.device)
        for layer in self.layers:
            x = layer(x, padding_mask, rotary)
        return torch.take_along_dim(x, order.argsort(1).unsqueeze(-1), dim=1)

"""Content that attends to the instruction.  Shapes: B batch, S content tokens, N instruction tokens, E model."""

from __future__ import annotations

from torch import Tensor, nn

from components.layers import Attention, length_mask
from components.models.audio_generator.adapters.output import AdapterOutput
from components.models.audio_generator.adapters.streams import with_lens
from components.models.audio_generator.conditions import Stream
from components.models.audio_generator.durations import TokenDurations, TotalDuration, scale_gradient


class CrossAttentionAdapter(nn.Module):
    """One cross-attention from content to instruction, then durations.

    Args:
        content_dim, instruction_dim: widths of the streams.
        dim: E, the width inside and of what comes out.
        num_heads: of the attention.
        dropout: on what is attended to, and in the predictors of durations.
        duration_grad_scale: the share of the durations' gradient that reaches the content.
        duration_dim, duration_layers: of the convolutions that predict the tokens' durations.
    """

    def __init__(
        self,
        content_dim: int,
        instruction_dim: int,
        dim: int = 128,
        num_heads: int = 4,
        dropout: float = 0.1,
        duration_grad_scale: float = 0.1,
        duration_dim: int = 128,
        duration_layers: int = 2,
    ) -> None:
        super().__init__()
        self.embed_dim, self.duration_grad_scale = dim, duration_grad_scale
        self.content = nn.Linear(content_dim, dim)
        self.attention = Attention(dim, num_heads, instruction_dim)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(dim)
        self.token_durations = TokenDurations(dim, duration_dim, duration_layers, dropout)
        self.total_duration = TotalDuration(dim, dropout)
        self.out = nn.Linear(dim, dim)

    def forward(self, content: Stream, instruction: Stream) -> AdapterOutput:
        """Streams `[B, S, content_dim]` and `[B, N, instruction_dim]`; padding is never seen."""
        (values, lens), (context, context_lens) = with_lens(content), with_lens(instruction)
        padding = ~length_mask(lens, values.shape[1]).unsqueeze(-1)
        x = self.content(values)
        attended = self.attention(x, context, ~length_mask(context_lens, context.shape[1]))
        x = self.norm(x + self.dropout(attended))
        durations = scale_gradient(x, self.duration_grad_scale)
        return AdapterOutput(
            Stream(self.out(x).masked_fill(padding, 0), lens),
            self.token_durations(durations, lens),
            self.total_duration(_mean(durations, padding, lens)),
        )


def _mean(x: Tensor, padding: Tensor, lens: Tensor) -> Tensor:
    return x.masked_fill(padding, 0).sum(1) / lens.clamp(min=1).unsqueeze(1).to(x.dtype)

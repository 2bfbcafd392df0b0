"""Content as it is."""

from __future__ import annotations

from torch import nn

from components.models.audio_generator.adapters.output import AdapterOutput
from components.models.audio_generator.conditions import Stream


class NoAdapter(nn.Module):
    """Hands content on unchanged, and predicts no durations.

    Args:
        content_dim: E of the content, and of what comes out.
        instruction_dim: E of the instruction, which is not read here.
    """

    def __init__(self, content_dim: int, instruction_dim: int) -> None:
        super().__init__()
        self.embed_dim = content_dim

    def forward(self, content: Stream, instruction: Stream) -> AdapterOutput:
        """Streams `[B, S, content_dim]` and `[B, N, instruction_dim]`."""
        return AdapterOutput(content)

"""What adapters ask of a stream."""

from __future__ import annotations

import torch

from components.models.audio_generator.conditions import Stream


def with_lens(stream: Stream) -> Stream:
    """The stream as `[B, N, E]` with lens, whatever it came as."""
    values, lens = stream
    values = values.unsqueeze(1) if values.ndim == 2 else values
    if lens is None:
        lens = torch.full((len(values),), values.shape[1], dtype=torch.long, device=values.device)
    return Stream(values, lens)

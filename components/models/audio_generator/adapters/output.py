"""What an adapter of content hands on."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from components.models.audio_generator.conditions import Stream


@dataclass(slots=True)
class AdapterOutput:
    """Content as an instruction reads it.

    Attributes:
        content: `[B, S, E]` with lens, E the adapter's `embed_dim`.
        log_durations: `[B, S]`, `log(1 + seconds / TOKEN_RESOLUTION)` of each token, zero behind the last.
        log_total_duration: `[B]`, `log(1 + seconds / TOTAL_RESOLUTION)` of the whole.
    """

    content: Stream
    log_durations: Tensor | None = None
    log_total_duration: Tensor | None = None

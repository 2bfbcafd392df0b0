"""Two that learn from each other.  Shapes: B batch, T samples."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class AdversarialPair(nn.Module):
    """A generator of waveforms and its discriminator as one model, for one optimizer each.

    Args:
        generator: `(waveform [B, 1, T], audio_lens [B], sample: bool) -> output` with a `waveform`, an autoencoder say.
        discriminator: `(waveform, audio_lens) -> list[Judgement]`.
    """

    def __init__(self, generator: nn.Module, discriminator: nn.Module) -> None:
        super().__init__()
        self.generator, self.discriminator = generator, discriminator

    def forward(self, waveform: Tensor, audio_lens: Tensor) -> Any:
        """What the generator makes of its input, nothing drawn."""
        return self.generator(waveform, audio_lens, sample=False)

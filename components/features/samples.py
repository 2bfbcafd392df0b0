"""No features at all: samples for encoders that begin with a waveform.  Shapes: B batch, T samples."""

from __future__ import annotations

from torch import Tensor

from components.features.frontend import Frontend


class Samples(Frontend):
    """A waveform `[B, 1, T]` as features `[B, T, 1]`, one frame per sample.

    Args:
        sample_rate: Hz.
    """

    num_features = 1

    def __init__(self, sample_rate: int) -> None:
        super().__init__()
        self.sample_rate = sample_rate

    def feature_lens(self, audio_lens: Tensor) -> Tensor:
        return audio_lens

    def extract(self, samples: Tensor, audio_lens: Tensor, seed: Tensor | None) -> Tensor:
        return samples.unsqueeze(-1)

"""Autoencoders that learn nothing.  Shapes: B batch, T samples, L frames, D latent."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from components.models.audio_generator.autoencoders.base import Autoencoder


class PatchAutoencoder(Autoencoder):
    """Each frame is a stretch of the waveform itself; the way there and back is exact.

    Args:
        sample_rate: Hz.
        patch_length: D, samples of a frame.
        statistics: see `Autoencoder`; samples are far from unit scale.
    """

    def __init__(self, sample_rate: int, patch_length: int, statistics: str | Path | None = None) -> None:
        super().__init__(sample_rate, patch_length, patch_length, statistics)

    def analyse(self, waveform: Tensor, latent_lens: Tensor, sample: bool) -> Tensor:
        return waveform.unflatten(-1, (-1, self.hop_length)).squeeze(1)

    def synthesise(self, latents: Tensor, latent_lens: Tensor) -> Tensor:
        return latents.flatten(1).unsqueeze(1)

"""What all autoencoders have in common.

Shapes: B batch, T samples, L frames (of `hop_length` samples), D latent.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from components.layers import length_mask
from components.models.audio_generator.autoencoders.statistics import LatentStatistics, moments_of, scale_problem


class Autoencoder(nn.Module, ABC):
    """Waveforms to latents at unit scale and back, each clip of a padded batch as if it stood alone.

    A clip is continued by silence to a whole number of frames, so T samples have `ceil(T / hop_length)` frames, at
    least one, and come back as so many times `hop_length` samples; cut them where the length is known. What lies behind
    a clip's last frame or sample is zero.

    Args:
        sample_rate: Hz.
        hop_length: samples of a frame.
        latent_dim: D.
        statistics: mean and deviation of the latents: see `LatentStatistics`.

    Raises:
        UserError: as `LatentStatistics`.
    """

    def __init__(
        self, sample_rate: int, hop_length: int, latent_dim: int, statistics: str | Path | None = None
    ) -> None:
        super().__init__()
        self.sample_rate, self.hop_length, self.latent_dim = sample_rate, hop_length, latent_dim
        self.statistics = LatentStatistics(latent_dim, statistics)

    @abstractmethod
    def analyse(self, waveform: Tensor, latent_lens: Tensor, sample: bool) -> Tensor:
        """Latents `[B, L, D]` at their own scale of `[B, 1, L * hop_length]`, zero behind each clip."""

    @abstractmethod
    def synthesise(self, latents: Tensor, latent_lens: Tensor) -> Tensor:
        """The waveform `[B, 1, L * hop_length]` of latents `[B, L, D]` at their own scale, zero behind each clip."""

    def latent_lens_of(self, audio_lens: Tensor) -> Tensor:
        """Frames of clips of `audio_lens` samples, `[B]` to `[B]`."""
        return torch.div(audio_lens + self.hop_length - 1, self.hop_length, rounding_mode="floor").clamp(min=1)

    def encode(self, waveform: Tensor, audio_lens: Tensor, sample: bool = False) -> tuple[Tensor, Tensor]:
        """`[B, 1, T]`, `[B]` to standardised latents `[B, L, D]` and their lengths `[B]`.

        Args:
            sample: draw from the posterior, where there is one, instead of taking its mean.
        """
        latents, latent_lens = self.raw_latents(waveform, audio_lens, sample)
        return self._masked(self.statistics.standardise(latents), latent_lens), latent_lens

    def decode(self, latents: Tensor, latent_lens: Tensor) -> tuple[Tensor, Tensor]:
        """Standardised latents `[B, L, D]`, `[B]` to a waveform `[B, 1, L * hop_length]` and its lengths `[B]`."""
        latents = self._masked(self.statistics.restore(latents), latent_lens)
        audio_lens = latent_lens * self.hop_length
        waveform = self.synthesise(latents, latent_lens)
        return waveform.masked_fill(~length_mask(audio_lens, waveform.shape[-1]).unsqueeze(1), 0), audio_lens

    def raw_latents(self, waveform: Tensor, audio_lens: Tensor, sample: bool = False) -> tuple[Tensor, Tensor]:
        """As `encode`, at the scale that the latents have before the statistics."""
        waveform = whole_frames(waveform, audio_lens, self.hop_length)
        latent_lens = self.latent_lens_of(audio_lens)
        return self._masked(self.analyse(waveform, latent_lens, sample), latent_lens), latent_lens

    def fit_statistics(self, latents: Iterable[Tensor | tuple[Tensor, Tensor]], per_dimension: bool = True) -> None:
        """Take mean and deviation from raw latents: of all that `raw_latents` gives for a training set, say.

        Args:
            latents: `[L, D]` each, or pairs of a batch `[B, L, D]` and its lengths `[B]`.
            per_dimension: False: one mean and deviation for all dimensions.

        Raises:
            UserError: there is not one frame.
        """
        self.statistics.fit(moments_of(latents), per_dimension)

    def check_scale(self, latents: Tensor, latent_lens: Tensor) -> str | None:
        """One sentence where latents that `encode` gave, `[B, L, D]`, are far from unit scale; else None.

        A model learns noise of mean 0 and deviation 1 into latents: of another scale it learns slowly or nothing.
        """
        return scale_problem(moments_of([(latents, latent_lens)]))

    @staticmethod
    def _masked(latents: Tensor, latent_lens: Tensor) -> Tensor:
        return latents.masked_fill(~length_mask(latent_lens, latents.shape[1]).unsqueeze(-1), 0)


def whole_frames(waveform: Tensor, audio_lens: Tensor, hop_length: int) -> Tensor:
    """Silence behind each clip of `[B, C, T]`, up to a whole number of frames for the longest; at least one."""
    samples = max(1, -(-waveform.shape[-1] // hop_length)) * hop_length
    inside = length_mask(audio_lens, waveform.shape[-1]).unsqueeze(1)
    return pad(waveform.masked_fill(~inside, 0), (0, samples - waveform.shape[-1]))

"""Latents that were computed before.  Shapes: B batch, L frames, D latent."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from components.models.audio_generator.autoencoders.base import Autoencoder


class IdentityAutoencoder(Autoencoder):
    """Takes latents for what they are: those of `python -m components.data extract`, which come as `features`.

    `encode` is given `features [B, L, D]` and `feature_lens [B]` in the place of a waveform and only standardises them.

    Args:
        latent_dim: D.
        sample_rate, hop_length: of what the latents were made, Hz and samples; `decoder` knows both.
        statistics: the `stats.json` beside the latents: see `Autoencoder`.
        decoder: the autoencoder that the latents came from, as it was when they were extracted; None: `decode` gives
            the latents back at their own scale, `[B, L, D]`.
    """

    def __init__(
        self,
        latent_dim: int,
        sample_rate: int | None = None,
        hop_length: int | None = None,
        statistics: str | Path | None = None,
        decoder: Autoencoder | None = None,
    ) -> None:
        rate, hop = (1, 1) if decoder is None else (decoder.sample_rate, decoder.hop_length)
        super().__init__(sample_rate or rate, hop_length or hop, latent_dim, statistics)
        self.decoder = decoder

    def raw_latents(self, waveform: Tensor, audio_lens: Tensor, sample: bool = False) -> tuple[Tensor, Tensor]:
        """The latents `[B, L, D]` themselves, zero behind each clip, and their lengths `[B]`."""
        return self._masked(self.analyse(waveform, audio_lens, sample), audio_lens), audio_lens

    def decode(self, latents: Tensor, latent_lens: Tensor) -> tuple[Tensor, Tensor]:
        """Standardised latents `[B, L, D]`, `[B]` to what `decoder` makes of them, or to latents at their own scale."""
        latents = self._masked(self.statistics.restore(latents), latent_lens)
        if self.decoder is None:
            return latents, latent_lens
        return self.decoder.decode(latents, latent_lens)

    def analyse(self, waveform: Tensor, latent_lens: Tensor, sample: bool) -> Tensor:
        return waveform

    def synthesise(self, latents: Tensor, latent_lens: Tensor) -> Tensor:
        return latents

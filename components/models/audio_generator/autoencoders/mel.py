"""Log-mel spectrograms as latents.  Shapes: B batch, T samples, L frames, F mels, which are the D of latents."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from components.features import LogMel, MelSpectrogram
from components.models.audio_generator.autoencoders.base import Autoencoder
from components.models.audio_generator.autoencoders.griffin_lim import griffin_lim
from components.models.audio_generator.autoencoders.mel_inverse import MelInverse


class MelAutoencoder(Autoencoder):
    """Mel spectrograms there, and back by a non-negative inverse of the filters and the fast Griffin-Lim algorithm.

    Args:
        frontend: a `LogMel`, or a `MelSpectrogram` whose padding is "center" or "same"; its mels are the latents.
        num_iterations, momentum: of Griffin-Lim: see `griffin_lim`.
        statistics: see `Autoencoder`; without, the latents are logarithms, far from unit scale.
        vocoder: a trained `mel [B, F, L] -> waveform [B, 1, L * hop_length]`, as HiFi-GAN and its like are, in the
            place of Griffin-Lim. As such networks know no padding, they are given clips of one length at a time.

    Raises:
        UserError: the frontend is another, or the statistics are of another number of mels.
    """

    def __init__(
        self,
        frontend: LogMel | MelSpectrogram,
        num_iterations: int = 16,
        momentum: float = 0.99,
        statistics: str | Path | None = None,
        vocoder: nn.Module | None = None,
    ) -> None:
        super().__init__(frontend.sample_rate, frontend.hop_length, frontend.num_features, statistics)
        self.frontend, self.vocoder = frontend, vocoder
        self.num_iterations, self.momentum = num_iterations, momentum
        self.to_mels = MelInverse(frontend)

    def analyse(self, waveform: Tensor, latent_lens: Tensor, sample: bool) -> Tensor:
        # of 1 + L centred frames the last lies on the clip's end: the next clip's, so to speak
        return self.frontend(waveform, latent_lens * self.hop_length)[0][:, : waveform.shape[-1] // self.hop_length]

    def synthesise(self, latents: Tensor, latent_lens: Tensor) -> Tensor:
        if self.vocoder is not None:
            return self._by_vocoder(latents.transpose(1, 2), latent_lens)
        with torch.autocast(latents.device.type, enabled=False):
            magnitudes = self.to_mels(latents.float())
            shape = (self.frontend.window, self.hop_length, self.to_mels.outside)
            return griffin_lim(magnitudes, latent_lens, *shape, self.num_iterations, self.momentum).unsqueeze(1)

    def _by_vocoder(self, mels: Tensor, latent_lens: Tensor) -> Tensor:
        waveform = mels.new_zeros(len(mels), 1, mels.shape[-1] * self.hop_length)
        for length in latent_lens.unique().tolist():
            alike = latent_lens == length
            waveform[alike, :, : length * self.hop_length] = self.vocoder(mels[alike, :, :length]).to(waveform.dtype)
        return waveform

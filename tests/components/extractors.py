"""Extractors for tests, in a module that imports little: what a module imports is part of its identity."""

import time
from types import SimpleNamespace

from torch import nn


class Frames(nn.Module):
    """Samples in rows of ten; slow, picky or broken as it is told."""

    sample_rate = 16_000

    def __init__(self, seconds: float = 0.0, longest: int = 10**9, value: float = 0.0) -> None:
        super().__init__()
        self.seconds, self.longest, self.value = seconds, longest, value

    def forward(self, waveform, audio_lens):
        time.sleep(self.seconds)
        if int(audio_lens.max()) > self.longest:
            raise RuntimeError(f"more than {self.longest} samples")
        frames = waveform[:, 0, : waveform.shape[-1] // 10 * 10].unflatten(-1, (-1, 10))
        return frames + self.value, audio_lens // 10


class Autoencoder:
    """As diffusers' are: a distribution over latents, and not a word about lengths."""

    config = SimpleNamespace(sampling_rate=16_000)

    def encode(self, waveform, return_dict=True):
        assert bool((waveform[..., -1] != 0).all()), "padding was put in"
        whole = waveform[..., : waveform.shape[-1] // 100 * 100]
        latents = whole.unflatten(-1, (-1, 100)).mean(-1).expand(-1, 4, -1)
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: latents))

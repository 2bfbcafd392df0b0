"""Clips and embedders for the tests of metrics, made on the spot."""

from dataclasses import dataclass

import numpy as np
import torch

from components.metrics import Clip

RATE = 8_000


def tone(name="a", seconds=0.5, hertz=200.0, noise=0.01, seed=0, rate=RATE, text=None, **labels):
    """A harmonic tone in noise."""
    generator = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    samples = sum(np.sin(2 * np.pi * k * hertz * time) / k for k in range(1, 6)) * 0.1
    samples = samples + noise * generator.standard_normal(len(time))
    return Clip(name, samples.astype(np.float32), rate, text, labels)


def silence(name="a", seconds=0.5, rate=RATE):
    return Clip(name, np.zeros(round(seconds * rate), dtype=np.float32), rate)


def carrying(vectors, prefix="", texts=None, labels=None):
    """Clips whose samples are the vectors: with `Samples` as the embedder a test chooses its embeddings."""
    return [
        Clip(f"{prefix}{i}", np.float32(vector), RATE, texts[i] if texts else None, labels[i] if labels else {})
        for i, vector in enumerate(np.atleast_2d(vectors))
    ]


@dataclass(frozen=True)
class Samples:
    """The embedding, and the logits, of a clip are its samples."""

    classes: tuple = ("no", "yes", "maybe")

    def embed(self, waveform, audio_lens, sample_rate):
        assert audio_lens.unique().numel() == 1
        return waveform[:, 0]

    logits = embed

    def embed_text(self, texts):
        """`"1 0 2"` is the vector (1, 0, 2)."""
        return torch.tensor([[float(number) for number in text.split()] for text in texts])

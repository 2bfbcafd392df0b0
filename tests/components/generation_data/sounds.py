"""Sounds that the tests of conditions are given."""

from pathlib import Path

import numpy as np
import torch

from components.data.generation import Clip

RATE, HOP = 8000, 80
SPEECH = Path(__file__).resolve().parents[4] / "shared" / "data" / "speech"


def buzz(hertz, seconds=0.5, rate=RATE):
    """A voice-like tone: five harmonics, of constant or gliding pitch."""
    pitch = np.broadcast_to(np.asarray(hertz, dtype=np.float64), round(seconds * rate))
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    return torch.from_numpy(0.1 * sum(np.sin(k * phase) / k for k in range(1, 6))).float().unsqueeze(0)


def clip_of(waveform, start=0.0, folder=Path(), **record):
    return Clip(waveform, RATE, {"id": "a", "duration": waveform.shape[-1] / RATE} | record, start, folder)

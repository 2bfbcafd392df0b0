"""What all feature modules have in common.  Shapes: B batch, T samples, L frames, F features."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from components.features.framing import behind_clips
from components.layers.masking import length_mask


class Frontend(nn.Module, ABC):
    """Waveforms to features: each clip of a padded batch as if it stood alone, in float32 even under autocast.

    Every clip has at least one frame, be it shorter than a window, so that no model divides by zero frames; frames
    behind a clip's last are zero. Gradients flow to the waveform.
    """

    sample_rate: int
    """Hz of the waveforms it is for."""

    num_features: int
    """F, the number of values per frame."""

    @abstractmethod
    def feature_lens(self, audio_lens: Tensor) -> Tensor:
        """Frames of clips of `audio_lens` samples, `[B]` to `[B]`."""

    @abstractmethod
    def extract(self, samples: Tensor, audio_lens: Tensor, seed: Tensor | None) -> Tensor:
        """Features `[B, L, F]` of float32 samples `[B, T]` that are zero behind each clip; L for a clip of T samples.

        Frames behind a clip's last may hold anything.
        """

    def forward(self, waveform: Tensor, audio_lens: Tensor, seed: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`[B, 1, T]`, `[B]` to features `[B, L, F]` and feature_lens `[B]`; `seed [B]` where something is random."""
        with torch.autocast(waveform.device.type, enabled=False):
            samples = waveform.squeeze(1).float()
            samples = samples.masked_fill(~length_mask(audio_lens, samples.shape[1]), 0)
            features = self.extract(samples, audio_lens, seed)
            feature_lens = self.feature_lens(audio_lens)
            return features.masked_fill(behind_clips(features, feature_lens), 0), feature_lens


class FeatureTransform(nn.Module, ABC):
    """Features to features, `(features [B, L, F], feature_lens [B]) -> (features, feature_lens)`.

    Takes and leaves zeros behind a clip's last frame, and treats a clip of a batch as if it stood alone.
    """

    def num_features(self, num_inputs: int) -> int:
        """F of what comes out, where F of what goes in is `num_inputs`."""
        return num_inputs

    def feature_lens(self, feature_lens: Tensor) -> Tensor:
        """Frames of what comes out, `[B]` to `[B]`."""
        return feature_lens

    @abstractmethod
    def forward(self, features: Tensor, feature_lens: Tensor) -> tuple[Tensor, Tensor]:
        """`[B, L, F]`, `[B]` to the same of what comes out."""

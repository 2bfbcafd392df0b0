"""A frontend with what comes before and behind it.  Shapes: B batch, T samples, L frames, F features."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from components.features.frontend import FeatureTransform, Frontend


class FeaturePipeline(nn.Module):
    """A frontend made of a frontend: `waveform_transforms`, `frontend`, `transforms`, in this order.

    Args:
        frontend: waveforms to features.
        transforms: name -> features to features, such as `GlobalCmvn` and `StackFrames`, applied in their order; None
            is left out, so that one can be removed at the prompt.
        waveform_transforms: name -> `(waveform [B, 1, T], audio_lens [B]) -> waveform`, likewise.

    Raises:
        UserError: a transform was made for another number of features than comes in.
    """

    def __init__(
        self,
        frontend: Frontend,
        transforms: Mapping[str, FeatureTransform | None] | None = None,
        waveform_transforms: Mapping[str, nn.Module | None] | None = None,
    ) -> None:
        super().__init__()
        self.frontend = frontend
        self.transforms = _kept(transforms)
        self.waveform_transforms = _kept(waveform_transforms)
        self.num_features = frontend.num_features
        for transform in self.transforms.values():
            self.num_features = transform.num_features(self.num_features)

    @property
    def sample_rate(self) -> int:
        """Hz of the waveforms it is for."""
        return self.frontend.sample_rate

    def feature_lens(self, audio_lens: Tensor) -> Tensor:
        """Frames of clips of `audio_lens` samples, `[B]` to `[B]`."""
        lens = self.frontend.feature_lens(audio_lens)
        for transform in self.transforms.values():
            lens = transform.feature_lens(lens)
        return lens

    def forward(self, waveform: Tensor, audio_lens: Tensor, seed: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`[B, 1, T]`, `[B]` to features `[B, L, F]` and feature_lens `[B]`; `seed [B]` where something is random."""
        with torch.autocast(waveform.device.type, enabled=False):
            for step in self.waveform_transforms.values():
                waveform = step(waveform, audio_lens)
            features, feature_lens = self.frontend(waveform, audio_lens, seed)
            for transform in self.transforms.values():
                features, feature_lens = transform(features, feature_lens)
            return features, feature_lens


def _kept(steps: Mapping[str, nn.Module | None] | None) -> nn.ModuleDict:
    return nn.ModuleDict({name: step for name, step in (steps or {}).items() if step is not None})

"""The tagging model.  Shapes: B batch, T samples, L frames, F mels, D model, K classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from components.augment.spec_augment import SpecAugment


@dataclass(slots=True)
class TaggerOutput:
    """What a clip is taken for.

    Attributes:
        logits: target -> `[B, K]`.
        embedding: `[B, D]`, what the classifiers see.
    """

    logits: dict[str, Tensor]
    embedding: Tensor


# So that FSDP, torch.export and their like find the tensors inside.
torch.export.register_dataclass(TaggerOutput)


class Tagger(nn.Module):
    """Waveforms to logits of one or several targets.

    Args:
        frontend: `(waveform, audio_lens, seed) -> (features [B, L, F], feature_lens)`, with `num_features` for F.
        backbone: makes, from `num_features`, a module `(features, feature_lens) -> (hidden [B, L', D], hidden_lens)`
            with `embed_dim` for D.
        head: makes, from `embed_dim` and `num_classes`, a module `(hidden, hidden_lens) -> (logits, embedding)`.
        num_classes: target -> K.
        augment: masks features in training, by the seed of each clip.
    """

    def __init__(
        self,
        frontend: nn.Module,
        backbone: Callable[..., nn.Module],
        head: Callable[..., nn.Module],
        num_classes: Mapping[str, int],
        augment: SpecAugment | None = None,
    ) -> None:
        super().__init__()
        self.frontend = frontend
        self.augment = augment
        self.backbone = backbone(num_features=frontend.num_features)
        self.head = head(embed_dim=self.backbone.embed_dim, num_classes=num_classes)

    def gradient_checkpointing_enable(self) -> None:
        """Trade time for memory in the backbone."""
        self.backbone.gradient_checkpointing_enable()

    def forward(self, waveform: Tensor, audio_lens: Tensor, seed: Tensor | None = None) -> TaggerOutput:
        """`waveform [B, 1, T]`, `audio_lens [B]`, `seed [B]` of the augmentation; padding is never seen."""
        features, feature_lens = self.frontend(waveform, audio_lens, seed)
        if self.augment is not None:
            features = self.augment(features, feature_lens, seed)
        hidden, hidden_lens = self.backbone(features, feature_lens)
        logits, embedding = self.head(hidden, hidden_lens)
        return TaggerOutput(logits, embedding)

"""One clip as the metrics see it.  Shapes: B batch, T samples."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from components.data.audio import resample

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Clip:
    """Mono audio with what is known of it.

    Attributes:
        id: pairs a generated clip with its reference.
        samples: float32 `[T]`, nominally in [-1, 1].
        sample_rate: Hz.
        text: what is said, or what was asked for.
        labels: {target: class name}, for judges and for what is counted by class.
    """

    id: str
    samples: np.ndarray
    sample_rate: int
    text: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    _memo: dict[Hashable, Any] = field(default_factory=dict, repr=False)

    @property
    def duration(self) -> float:
        """Seconds."""
        return len(self.samples) / self.sample_rate

    def remember(self, key: Hashable, compute: Callable[[], T]) -> T:
        """What `compute` gives, made once: metrics of one clip share embeddings, pitch and resampled audio."""
        if key not in self._memo:
            self._memo[key] = compute()
        return self._memo[key]

    def at(self, sample_rate: int) -> np.ndarray:
        """The samples at another rate in Hz, float32 `[T']`."""
        return self.remember(("at", sample_rate), lambda: resample(self.samples, self.sample_rate, sample_rate))

    def cut(self, num_samples: int) -> Clip:
        """The clip without what lies behind `num_samples`."""
        if num_samples >= len(self.samples):
            return self
        make = lambda: Clip(self.id, self.samples[:num_samples], self.sample_rate, self.text, self.labels)  # noqa: E731
        return self.remember(("cut", num_samples), make)

    def __getstate__(self) -> dict[str, Any]:  # between processes the audio is enough
        return {**self.__dict__, "_memo": {}}


def join(clips: Sequence[Clip]) -> Clip:
    """One clip of several of the same rate, end to end."""
    samples = np.concatenate([clip.samples for clip in clips])
    return Clip("+".join(clip.id for clip in clips), samples, clips[0].sample_rate)


def clips_of_batch(
    batch: Mapping[str, Any], sample_rate: int, waveform: str = "waveform", lens: str = "audio_lens"
) -> list[Clip]:
    """The clips of a padded batch: `id`, `waveform [B, 1, T]`, `audio_lens [B]`, and `text`, `labels` where there are.

    Args:
        sample_rate: Hz.
        waveform, lens: keys of the audio, where it is another than the batch's main one.
    """
    samples, sizes = batch[waveform].detach().float().cpu().squeeze(1).numpy(), batch[lens].tolist()
    texts, labels = batch.get("text"), batch.get("labels")
    return [
        Clip(
            str(name),
            samples[i, : sizes[i]].copy(),
            sample_rate,
            texts[i] if texts is not None else None,
            labels[i] if labels is not None else {},
        )
        for i, name in enumerate(batch["id"])
    ]


def pad_clips(clips: Sequence[Clip]) -> tuple[Tensor, Tensor]:
    """Waveform `[B, 1, T]` float32, zero behind each clip, and audio_lens `[B]`."""
    lens = torch.tensor([len(clip.samples) for clip in clips])
    waveform = torch.zeros(len(clips), 1, int(lens.max()))
    for i, clip in enumerate(clips):
        waveform[i, 0, : lens[i]] = torch.from_numpy(np.ascontiguousarray(clip.samples))
    return waveform, lens

"""Recordings to be improved: what is made worse of a target, sample by sample in its place.

Shapes: C channels, T samples, L frames. Draws are from torch's global generator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from components.augment.draws import check_range, index_below, uniform
from components.data.audio import resample
from components.data.generation.canvas import sounding_length
from components.data.generation.clip import Clip, num_frames
from utils.errors import UserError

Augmentation = Callable[[Tensor, int], Tensor]


class Degraded:
    """The target after augmentations, for enhancement: with noise, in a room, clipped, ...

    Args:
        steps: name -> `(waveform [1, T], sample_rate) -> waveform [1, T]`; null removes one. `AddNoise` and
            `AddNoiseFromFiles` of `components.augment` give noise at a range of ratios, with `p: 1`.
        stream: its name.

    Raises:
        UserError: no step is left, or (when used) one changes the length.
    """

    def __init__(self, steps: Mapping[str, Augmentation | None], stream: str = "source_waveform") -> None:
        self.steps = {name: step for name, step in steps.items() if step is not None}
        self.stream, self.kinds = stream, {stream: "waveform"}
        if not self.steps:
            raise UserError("Degraded: without a step the source would be the target")

    def __call__(self, clip: Clip) -> dict[str, Any]:
        source = clip.waveform
        for name, step in self.steps.items():
            source = step(source, clip.sample_rate)
            if source.shape != clip.waveform.shape:
                raise UserError(
                    f"Degraded: {name} makes {source.shape[-1]} samples of {clip.waveform.shape[-1]}, so that source "
                    "and target are no longer aligned"
                )
        return {self.stream: source}


class SuperResolution:
    """The target as it would be at a lower sample rate: limited in band, at its own rate and length again.

    Args:
        source_rates: Hz; of several one is drawn.
        stream: its name.

    Raises:
        UserError: there is no rate, or (when used) it is not below the target's.
    """

    def __init__(self, source_rates: Sequence[int] = (4000,), stream: str = "source_waveform") -> None:
        if not source_rates or min(source_rates) <= 0:
            raise UserError(f"SuperResolution: source_rates are Hz above 0, not {list(source_rates)}")
        self.source_rates = tuple(source_rates)
        self.stream, self.kinds = stream, {stream: "waveform"}

    def __call__(self, clip: Clip) -> dict[str, Any]:
        rate = self.source_rates[index_below(len(self.source_rates))]
        if rate >= clip.sample_rate:
            raise UserError(
                f"SuperResolution: source rates lie below the target's {clip.sample_rate} Hz, not at {rate}"
            )
        low = resample(clip.waveform[0].numpy(), clip.sample_rate, rate)
        length = clip.waveform.shape[-1]
        back = resample(low, rate, clip.sample_rate)[:length]
        return {self.stream: torch.from_numpy(np.pad(back, (0, length - len(back)))).unsqueeze(0)}


class InPainting:
    """The target with a stretch of it silenced, and which latent frames these are.

    The stretch lies within what sounds, before the silence that pads a canvas.

    Args:
        hop_length: samples of a latent frame.
        min_seconds, max_seconds: its length, drawn uniformly; in whole frames, at least one.
        stream, mask: names: of the source, and of the mask `[L]`, 1 in frames to be filled.

    Raises:
        UserError: `min_seconds` is above `max_seconds`.
    """

    def __init__(
        self,
        hop_length: int,
        min_seconds: float = 0.1,
        max_seconds: float = 0.24,
        stream: str = "source_waveform",
        mask: str = "mask",
    ) -> None:
        self.min_seconds, self.max_seconds = check_range(min_seconds, max_seconds, "InPainting", "length in seconds")
        self.hop_length, self.stream, self.mask = hop_length, stream, mask
        self.kinds = {stream: "waveform", mask: "frames"}

    def __call__(self, clip: Clip) -> dict[str, Any]:
        hop, length = self.hop_length, clip.waveform.shape[-1]
        sounding = num_frames(sounding_length(clip.waveform), hop)
        wanted = round(uniform(self.min_seconds, self.max_seconds) * clip.sample_rate / hop)
        size = min(max(1, wanted), sounding)
        first = index_below(sounding - size + 1)
        mask = torch.zeros(num_frames(length, hop))
        mask[first : first + size] = 1
        source = clip.waveform.clone()
        source[:, first * hop : (first + size) * hop] = 0
        return {self.stream: source, self.mask: mask}

"""Clips of one level and of one length.  Shapes: C channels, T samples."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from components.augment.draws import index_below
from components.augment.level import active_power
from utils.errors import BadSample, UserError

Place = Literal["random", "start", "center"]
TooLong = Literal["crop", "refuse"]


class NormalizeLevel:
    """Scale a clip so that the root mean square of its active part is `rms`; digital silence stays.

    What is active is told by `components.augment.level.active_power`: frames within 40 dB of the loudest. So pauses,
    and silence that was put behind a clip, change nothing.

    Args:
        rms: of samples in [-1, 1]; 0.1 is 20 dB below full scale.

    Raises:
        UserError: `rms` is not above 0.
    """

    def __init__(self, rms: float = 0.1) -> None:
        if rms <= 0:
            raise UserError(f"NormalizeLevel: rms must be above 0, not {rms}")
        self.rms = rms

    def __call__(self, waveform: Tensor, sample_rate: int) -> Tensor:
        """`[C, T]` to `[C, T]`."""
        power = active_power(waveform.numpy(), sample_rate)
        return waveform * (self.rms / power**0.5) if power else waveform


class NoiseFloor:
    """Faint white noise, the same for every clip: what lies below it is told apart by nobody.

    A judge that hears everything above such a floor goes neither by digital silence nor by the last bits of a vocoder.

    Args:
        rms: of the noise; samples lie in [-1, 1].
    """

    def __init__(self, rms: float = 0.001) -> None:
        self.rms = rms

    def __call__(self, waveform: Tensor, sample_rate: int) -> Tensor:
        """`[C, T]` to `[C, T]`."""
        return waveform + self.rms * torch.randn(waveform.shape, generator=torch.Generator().manual_seed(0))


class FixedCanvas:
    """Clips of exactly `seconds`: silence behind shorter ones, a piece of longer ones.

    To leave longer clips out altogether give their `AudioDataset` a `max_duration`, which counts them.

    Args:
        seconds: length of the canvas.
        too_long: "crop" takes a piece of a longer clip; "refuse" makes it a `BadSample`.
        place: where the piece is taken from; "random" draws from torch's global generator.
        multiple_of: a piece begins at a multiple of so many samples: the hop of what is aligned with it.
        pad_short: False leaves shorter clips as they are.

    Raises:
        UserError: `seconds` or `multiple_of` is not above 0.
    """

    def __init__(
        self,
        seconds: float,
        too_long: TooLong = "crop",
        place: Place = "random",
        multiple_of: int = 1,
        pad_short: bool = True,
    ) -> None:
        if seconds <= 0 or multiple_of < 1:
            raise UserError(f"FixedCanvas: no canvas of {seconds} s by steps of {multiple_of} samples")
        self.seconds, self.too_long, self.place = seconds, too_long, place
        self.multiple_of, self.pad_short = multiple_of, pad_short

    def __call__(self, waveform: Tensor, sample_rate: int) -> Tensor:
        """`[C, T]` to `[C, seconds * sample_rate]`."""
        return self.fit(waveform, sample_rate)[0]

    def fit(self, waveform: Tensor, sample_rate: int) -> tuple[Tensor, int]:
        """The canvas, and which sample of the clip it begins with.

        Raises:
            BadSample: the clip is longer, and that is refused.
        """
        length = max(1, round(self.seconds * sample_rate))
        spare = waveform.shape[-1] - length
        if spare <= 0:
            return (pad(waveform, (0, -spare)) if self.pad_short else waveform), 0
        if self.too_long == "refuse":
            heard = f"{waveform.shape[-1] / sample_rate:.2f} s"
            message = f"a clip of {heard} does not fit on a canvas of {self.seconds} s"
            raise BadSample(message, reason="too long for the canvas")
        steps = spare // self.multiple_of
        step = index_below(steps + 1) if self.place == "random" else steps // 2 if self.place == "center" else 0
        start = step * self.multiple_of
        return waveform[..., start : start + length], start


def sounding_length(waveform: Tensor) -> int:
    """Samples of `[C, T]` before the digital silence at its end, at least 1."""
    sounding = torch.nonzero(waveform.abs().amax(0)).flatten()
    return int(sounding[-1]) + 1 if len(sounding) else 1

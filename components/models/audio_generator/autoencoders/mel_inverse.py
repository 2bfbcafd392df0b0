"""From mels back to magnitudes.  Shapes: B batch, L frames, F mels, N bins of the spectrum."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from components.features import LogMel, MelSpectrogram
from utils.errors import UserError

_QUIETEST = 1e-12  # power


class MelInverse(nn.Module):
    """Magnitudes of at least zero whose mels are about the given ones.

    The pseudo-inverse of the filters, without what is negative, is brought nearer to the mels by multiplicative updates
    of non-negative least squares (Lee & Seung 2001, "Algorithms for non-negative matrix factorization", eq. 4).

    Args:
        frontend: a `LogMel`, or a `MelSpectrogram` with padding "center" or "same".
        num_updates: of the least squares.

    Attributes:
        outside: samples of the first frame that lie before the clip's first.

    Raises:
        UserError: the frontend is another, takes off a clip's mean, or leaves out its edges.
    """

    def __init__(self, frontend: LogMel | MelSpectrogram, num_updates: int = 16) -> None:
        super().__init__()
        if not isinstance(frontend, (LogMel, MelSpectrogram)):
            name = type(frontend).__name__
            raise UserError(f"frontend: mels are turned back of LogMel and MelSpectrogram only, not of {name}")
        if getattr(frontend, "subtract_mean", False) or getattr(frontend, "top_db", None) is not None:
            raise UserError("frontend: subtract_mean and top_db forget what is needed on the way back: leave them out")
        self.outside = getattr(frontend, "outside", frontend.n_fft // 2)
        if not self.outside and frontend.n_fft > frontend.hop_length:
            raise UserError("frontend: padding=none leaves out a clip's edges: take center or same")
        self.power = getattr(frontend, "power", 2)
        self.log, self.floor = getattr(frontend, "log", "ln"), frontend.floor if isinstance(frontend, LogMel) else 0.0
        self.num_updates = num_updates
        filters = frontend.filters.double()
        self.loudest = float(frontend.window.sum().pow(self.power) * filters.sum(0).max())
        buffers = {"inverse": torch.linalg.pinv(filters), "filters": filters, "back": filters.T}
        for name, value in buffers.items():
            self.register_buffer(name, value.float().contiguous(), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """`[B, L, F]` as the frontend gives them to magnitudes `[B, L, N]`; none louder than any clip in [-1, 1]."""
        mels = self._linear(features)
        spectrum = (mels @ self.inverse).clamp(min=0) + 1e-3 * mels @ self.back
        target = mels @ self.back
        for _ in range(self.num_updates):
            spectrum = spectrum * target / (spectrum @ self.filters @ self.back).clamp(min=_QUIETEST)
        return spectrum.pow(1 / self.power)

    def _linear(self, features: Tensor) -> Tensor:
        if self.log is None:
            return features.clamp(min=0, max=self.loudest)
        step = {"ln": 1.0, "log10": math.log(10), "db": math.log(10) * self.power / 20}[self.log]
        mels = (features * step).clamp(max=math.log(self.loudest)).exp() - self.floor
        return mels.clamp(min=0)

"""Loudness of waveforms.  Shapes: B batch, C channels, T samples."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from components.layers.masking import length_mask
from utils.errors import UserError

_DEFAULT_LEVELS_DB = {"peak": 0.0, "rms": -20.0}
_QUIETEST = 1e-5  # -100 dB: what is quieter is silence, and is not made louder without end


class NormalizeWaveform(nn.Module):
    """Bring every clip to the same level, as it stands without its padding; silence stays silent.

    Args:
        mode: "peak" (largest magnitude), "rms" (root of the mean square), or "zero_mean_unit_variance" (the
            `do_normalize` of wav2vec 2.0: Baevski et al. 2020, arXiv:2006.11477).
        level_db: of the peak, 0 by default, or of the rms, -20 by default; dB, 0 is full scale.

    Raises:
        UserError: the mode is unknown, or has no level.
    """

    def __init__(self, mode: str = "zero_mean_unit_variance", level_db: float | None = None) -> None:
        super().__init__()
        if mode not in ("zero_mean_unit_variance", *_DEFAULT_LEVELS_DB):
            raise UserError(f"mode: expected peak, rms or zero_mean_unit_variance, got {mode!r}")
        if level_db is not None and mode not in _DEFAULT_LEVELS_DB:
            raise UserError(f"level_db: {mode} has no level")
        self.mode = mode
        self.level = 10 ** ((_DEFAULT_LEVELS_DB.get(mode, 0.0) if level_db is None else level_db) / 20)

    def forward(self, waveform: Tensor, audio_lens: Tensor) -> Tensor:
        """`[B, C, T]` with `audio_lens [B]` to the same in float32, zero behind each clip; C share one factor."""
        with torch.autocast(waveform.device.type, enabled=False):
            outside = ~length_mask(audio_lens, waveform.shape[-1]).unsqueeze(1)
            samples = waveform.float().masked_fill(outside, 0)
            count = (audio_lens.clamp(min=1) * samples.shape[1]).view(-1, 1, 1)
            if self.mode == "peak":
                return samples * (self.level / samples.abs().amax((1, 2), keepdim=True).clamp(min=_QUIETEST))
            if self.mode == "rms":
                square = samples.square().sum((1, 2), keepdim=True) / count
                return samples * (self.level / square.clamp(min=_QUIETEST**2).sqrt())
            samples = (samples - samples.sum((1, 2), keepdim=True) / count).masked_fill(outside, 0)
            variance = samples.square().sum((1, 2), keepdim=True) / count
            return samples * torch.rsqrt(variance + 1e-7)

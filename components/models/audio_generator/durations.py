"""How long things last: prediction, losses, and from tokens to frames.

Shapes: B batch, S tokens, L frames, E width. Durations are predicted as `log(1 + seconds / resolution)`, in which a
tenth more is about as wrong at any length, and zero is zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from components.layers import length_mask
from components.models.audio_generator.conditions import Stream

TOKEN_RESOLUTION = 0.01  # seconds
TOTAL_RESOLUTION = 0.1  # seconds


def to_log_duration(seconds: Tensor, resolution: float) -> Tensor:
    """`log(1 + seconds / resolution)`."""
    return torch.log1p(seconds / resolution)


def from_log_duration(log_duration: Tensor, resolution: float) -> Tensor:
    """Seconds, never below zero."""
    return torch.expm1(log_duration).clamp(min=0) * resolution


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """`x`, with `factor` times its gradient: who learns from it disturbs who made it so much less."""
    return x * factor + x.detach() * (1 - factor)


def round_durations(durations: Tensor, lens: Tensor, total: Tensor | None = None) -> Tensor:
    """Durations in frames to whole frames `[B, S]` int64 whose sum is exact.

    Ends are rounded, not durations, so that no token lies more than half a frame off and errors do not add up.

    Args:
        durations: `[B, S]`, not negative.
        lens: `[B]`, tokens of each item; those behind get 0.
        total: `[B]` frames to which the durations of an item are stretched; None: their own sum, rounded. Where all of
            an item's durations are zero, its tokens share alike.
    """
    real = length_mask(lens, durations.shape[1])
    durations = durations.double().masked_fill(~real, 0)
    if total is not None:
        durations = torch.where(durations.sum(1, keepdim=True) > 0, durations, real.double())
        durations = durations * (total / durations.sum(1).clamp(min=1e-9)).unsqueeze(1)
    ends = (durations.cumsum(1) + 0.5).floor().long()  # halves up: round() would alternate
    return ends.diff(dim=1, prepend=ends.new_zeros(len(ends), 1))


def expand_by_durations(content: Stream, frames: Tensor, num_frames: int) -> Stream:
    """Repeat each token over its frames: `values [B, S, E]`, `frames [B, S]` int64 to `[B, num_frames, E]`.

    The result's lens are the sums of `frames`, at most `num_frames`; zeros behind (FastSpeech's length regulator, Ren
    et al. 2019, arXiv:1905.09263, without a loop).
    """
    ends = frames.cumsum(1)
    position = torch.arange(num_frames, device=frames.device).expand(len(frames), -1).contiguous()
    token = torch.searchsorted(ends, position, right=True).clamp(max=frames.shape[1] - 1)
    lens = ends[:, -1].clamp(max=num_frames)
    values = torch.take_along_dim(content.values, token.unsqueeze(-1), dim=1)
    return Stream(values.masked_fill(~length_mask(lens, num_frames).unsqueeze(-1), 0), lens)


class TokenDurations(nn.Module):
    """Convolutions over tokens, as in FastSpeech (Ren et al. 2019, arXiv:1905.09263); padding is never seen.

    Args:
        dim: E of the tokens.
        hidden_dim: width inside.
        num_layers: convolutions of three tokens each.
        dropout: after each.
    """

    def __init__(self, dim: int, hidden_dim: int = 128, num_layers: int = 2, dropout: float = 0.1) -> None:
        super().__init__()
        widths = [dim, *[hidden_dim] * num_layers]
        self.convolutions = nn.ModuleList(nn.Conv1d(a, hidden_dim, 3, padding=1) for a in widths[:-1])
        self.norms = nn.ModuleList(nn.LayerNorm(hidden_dim) for _ in range(num_layers))
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(widths[-1], 1)

    def forward(self, tokens: Tensor, lens: Tensor) -> Tensor:
        """`[B, S, E]`, `[B]` to log durations `[B, S]`, zero behind an item's last token."""
        padding = ~length_mask(lens, tokens.shape[1]).unsqueeze(-1)
        for convolution, norm in zip(self.convolutions, self.norms):
            tokens = convolution(tokens.masked_fill(padding, 0).transpose(1, 2)).transpose(1, 2)
            tokens = self.dropout(norm(tokens.relu()))
        return self.out(tokens).masked_fill(padding, 0).squeeze(-1)


class TotalDuration(nn.Module):
    """A hidden layer over one vector of the whole content.

    Args:
        dim: of that vector.
        dropout: of the hidden layer.
    """

    def __init__(self, dim: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Dropout(dropout), nn.Linear(dim, 1))

    def forward(self, vector: Tensor) -> Tensor:
        """`[B, E]` to a log duration `[B]`."""
        return self.net(vector).squeeze(-1)


@dataclass(slots=True)
class DurationLosses:
    """Squared errors of log durations.

    Attributes:
        token: `[B]`, the mean over an item's tokens; 0 for items that are not time-aligned.
        total: `[B]`.
        is_aligned: `[B]` bool, the items that count in `token`.
    """

    token: Tensor
    total: Tensor
    is_aligned: Tensor

    @property
    def token_mean(self) -> Tensor:
        """The mean of `token` over the time-aligned items alone; 0 without one."""
        return self.token.sum() / self.is_aligned.sum().clamp(min=1)


class DurationLoss:
    """Errors of predicted durations: those of tokens where the content is time-aligned, the total's everywhere.

    Args:
        token_resolution: seconds, as the predictions are meant (see the head of this file).
        total_resolution: likewise.
    """

    def __init__(self, token_resolution: float = TOKEN_RESOLUTION, total_resolution: float = TOTAL_RESOLUTION) -> None:
        self.token_resolution, self.total_resolution = token_resolution, total_resolution

    def __call__(
        self,
        log_durations: Tensor,
        log_total_duration: Tensor,
        durations: Tensor,
        token_lens: Tensor,
        is_aligned: Tensor,
        total_duration: Tensor,
    ) -> DurationLosses:
        """Compare with the truth.

        Args:
            log_durations: `[B, S]`, predicted.
            log_total_duration: `[B]`, predicted.
            durations: `[B, S]` seconds; what is padded or of items that are not aligned does not matter.
            token_lens: `[B]`.
            is_aligned: `[B]` bool.
            total_duration: `[B]` seconds.
        """
        counted = length_mask(token_lens, log_durations.shape[1]) & is_aligned.unsqueeze(1)
        durations = durations.masked_fill(~counted, 0)
        error = (log_durations.float() - to_log_duration(durations, self.token_resolution)).square()
        token = error.masked_fill(~counted, 0).sum(1) / counted.sum(1).clamp(min=1)
        total = (log_total_duration.float() - to_log_duration(total_duration, self.total_resolution)).square()
        return DurationLosses(token, total, is_aligned)

"""Continuous integrate-and-fire (Dong & Xu 2020, arXiv:1905.11235), exact and without a loop over frames.

A frame carries a weight. Where the running sum of the weights passes a multiple of the threshold, a token ends: its
embedding is the weighted sum of the frames since the token before, a frame at the border being divided between the two:

    S_t = a_1 + ... + a_t
    W[n, t] = length of [S_{t-1}, S_t] inside of [n theta, (n + 1) theta]
    E[n] = sum over t of W[n, t] H_t

Only S is kept in float64 (`[B, T]`: next to nothing): its rounding decides which token a frame belongs to.
Shapes: B batch, T frames, N tokens, D hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, pad

from components.layers.masking import length_mask
from utils.errors import UserError

METHODS = ("merge", "dense")
_NO_WEIGHT = 1e-8  # a sum of weights below it says nothing of where the tokens are
_ROUNDING = 1e-9  # of float64 sums over some thousand frames


def scale_weights(alphas: Tensor, num_tokens: Tensor, lens: Tensor, threshold: float = 1.0) -> Tensor:
    """Weights `[B, T]`, zero behind `lens [B]`, multiplied to fire exactly `num_tokens [B]` times; float64.

    An utterance without any weight is divided evenly between its tokens.
    """
    alphas = alphas.double()
    wanted = num_tokens.double() * threshold
    total = alphas.sum(1)
    known = total > _NO_WEIGHT
    scaled = alphas * (wanted / total.where(known, 1.0))[:, None]
    even = length_mask(lens, alphas.shape[1]) * (wanted / lens.clamp(min=1))[:, None]
    return scaled.where(known[:, None], even)


def integrate_and_fire(
    hidden: Tensor,
    alphas: Tensor,
    num_tokens: Tensor,
    max_tokens: int | None = None,
    threshold: float = 1.0,
    method: str = "merge",
) -> Tensor:
    """Frames `[B, T, D]` and their weights `[B, T]` to the embeddings of `num_tokens [B]` tokens, `[B, N, D]`.

    What is integrated beyond a row's tokens is dropped; a token that the weights do not reach is zero. Weights above
    the threshold are allowed: such a frame is part of several tokens.

    Args:
        max_tokens: N; None for the largest of `num_tokens` (which waits for the device).
        threshold: theta, the weight of a token.
        method: `merge` sorts the borders of frames and tokens into one line of pieces, O((T + N) D); `dense` makes
            `cif_matrix` and multiplies, O(N T D), in operations that every exporter knows.

    Raises:
        UserError: there is no such method.
    """
    if method not in METHODS:
        raise UserError(f"method: {method!r} is none of {', '.join(METHODS)}")
    if max_tokens is None:
        max_tokens = int(num_tokens.max())
    if method == "dense":
        rows = cif_matrix(alphas, max_tokens, threshold).to(hidden.dtype) @ hidden
    else:
        rows = _integrate(hidden, alphas.double(), max_tokens, threshold)[:, :max_tokens]
    return rows * length_mask(num_tokens, max_tokens)[:, :, None]


def cif_matrix(alphas: Tensor, max_tokens: int, threshold: float = 1.0) -> Tensor:
    """W of the formula above, float64 `[B, N, T]`, of weights `[B, T]`."""
    ends = alphas.double().cumsum(1)[:, None]
    starts = pad(ends, (1, 0))[..., :-1]
    token_starts = (torch.arange(max_tokens, device=alphas.device, dtype=torch.float64) * threshold)[:, None]
    return (ends.minimum(token_starts + threshold) - starts.maximum(token_starts)).clamp(min=0)


def _integrate(
    hidden: Tensor, alphas: Tensor, max_tokens: int, threshold: float, start: Tensor | None = None
) -> Tensor:
    """`[B, N + 1, D]`: the tokens, and what lies beyond them; `start [B]`: the integral before the first frame."""
    frame, token, mass = _pieces(alphas, max_tokens, threshold, start)
    batch, num_frames, dim = hidden.shape
    row = torch.arange(batch, device=hidden.device)[:, None]
    tokens = torch.arange(max_tokens + 1, device=hidden.device).expand(batch, -1)
    first_piece = torch.searchsorted(token, tokens.contiguous()) + row * token.shape[1]
    # One fused gather, weighting and sum: nothing of the size [B, T + N, D] is ever made.
    summed = embedding_bag(
        (frame + row * num_frames).flatten(), hidden.reshape(-1, dim), first_piece.flatten(),
        mode="sum", per_sample_weights=mass.to(hidden.dtype).flatten(),
    )  # fmt: skip
    return summed.view(batch, max_tokens + 1, dim)


def _pieces(alphas: Tensor, max_tokens: int, threshold: float, start: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """The line of integration, cut wherever a frame or a token ends: frame, token and mass of each piece, `[B, T + N]`.

    A piece lies in one frame and in one token, so that no case is special: not a weight above the threshold, not more
    tokens than frames.
    """
    batch, num_frames = alphas.shape
    start = alphas.new_zeros(batch) if start is None else start
    frame_ends = start[:, None] + alphas.cumsum(1)
    token_ends = torch.arange(1, max_tokens + 1, device=alphas.device, dtype=alphas.dtype) * threshold
    ends, order = torch.cat([frame_ends, token_ends.expand(batch, -1)], dim=1).sort(dim=1, stable=True)
    of_frame = (order < num_frames).long()
    frame = of_frame.cumsum(1) - of_frame
    token = torch.arange(ends.shape[1], device=alphas.device) - frame
    mass = torch.diff(ends, dim=1, prepend=start[:, None]).masked_fill(frame == num_frames, 0.0)
    return frame.clamp(max=num_frames - 1), token, mass


def token_spans(alphas: Tensor, lens: Tensor, max_tokens: int, threshold: float = 1.0) -> tuple[Tensor, Tensor]:
    """Where each token begins and ends, in frames with fractions: two float64 `[B, N]`.

    S is linear inside a frame and is inverted: token n lies between the last place where S is n theta and the first
    where it is (n + 1) theta. Frames without weight lie between tokens.

    Args:
        alphas: `[B, T]`, zero behind `lens [B]`; a token that they do not reach begins and ends with the utterance.
    """
    alphas = alphas.double()
    integral = alphas.cumsum(1)
    borders = torch.arange(max_tokens + 1, device=alphas.device, dtype=torch.float64) * threshold
    borders = borders.expand(len(alphas), -1)
    begins = _places(alphas, integral, lens, borders[:, :-1] + _ROUNDING, right=True)
    ends = _places(alphas, integral, lens, borders[:, 1:] - _ROUNDING, right=False)
    return begins, ends.maximum(begins)


def _places(alphas: Tensor, integral: Tensor, lens: Tensor, borders: Tensor, right: bool) -> Tensor:
    frame = torch.searchsorted(integral, borders.contiguous(), right=right).clamp(max=alphas.shape[1] - 1)
    weight = alphas.gather(1, frame)
    left = borders - (integral.gather(1, frame) - weight)
    place = frame + (left / weight.where(weight > 0, 1.0)).clamp(0, 1)
    place = place.where(borders <= integral[:, -1:], torch.inf)
    return place.minimum(lens[:, None].double())


class CifStream:
    """Integrate-and-fire over chunks: all chunks together give what the whole gives.

    Between chunks it keeps the mass of the token begun, `[B]` float64, and its sum, `[B, D]`.
    """

    def __init__(self, threshold: float = 1.0) -> None:
        self.threshold = threshold
        self._mass: Tensor | None = None
        self._begun: Tensor | None = None

    def push(self, hidden: Tensor, alphas: Tensor) -> tuple[Tensor, Tensor]:
        """A chunk `[B, t, D]` and its weights `[B, t]` to the tokens it ends, `[B, n, D]`, and their number, `[B]`."""
        alphas = alphas.double()
        if self._mass is None:
            self._mass, self._begun = alphas.new_zeros(len(alphas)), torch.zeros_like(hidden[:, 0])
        integral = self._mass + alphas.sum(1)
        fired = (integral / self.threshold + _ROUNDING).floor().long()
        most = int(fired.max())
        rows = _integrate(hidden, alphas, most, self.threshold, start=self._mass)
        rows = torch.cat([rows[:, :1] + self._begun[:, None], rows[:, 1:]], dim=1)
        self._begun = rows[torch.arange(len(rows), device=rows.device), fired]
        self._mass = (integral - fired * self.threshold).clamp(min=0)
        return rows[:, :most] * length_mask(fired, most)[:, :, None], fired

    def finish(self, tail: float) -> tuple[Tensor, Tensor]:
        """The token begun, where its mass and `tail` reach the threshold: `[B, 0 or 1, D]` and its number, `[B]`."""
        assert self._begun is not None, "nothing was pushed"
        silence = torch.zeros_like(self._begun)[:, None]
        return self.push(silence, torch.full_like(self._mass, tail)[:, None])


def lossy_integrate_and_fire(hidden: Tensor, alphas: Tensor, num_tokens: Tensor, max_tokens: int) -> Tensor:
    """Integrate-and-fire as public implementations do it, for comparison; `integrate_and_fire` with a threshold of 1.

    The weights are summed frame by frame in float32, a token is kept where the sum is seen to reach 1, and a frame ends
    one token at most. Rounding leaves the last sum below 1 in about half of all utterances whose weights were scaled
    to their number of tokens: these lose their last token, whose row is zero.
    """
    alphas = alphas.float()
    integral = alphas.new_zeros(len(alphas))
    kept, passed_on, fires = [], [], []
    for alpha in alphas.unbind(1):
        missing = 1 - integral
        integral = integral + alpha
        fires.append(integral >= 1)
        kept.append(missing.where(fires[-1], alpha))
        passed_on.append(alpha - kept[-1])
        integral = torch.where(fires[-1], integral - 1, integral)
    fired = torch.stack(fires, 1).long().cumsum(1)
    token = (fired - torch.stack(fires, 1).long()).clamp(max=max_tokens)
    index = torch.cat([token, fired.clamp(max=max_tokens)], 1)[..., None].expand(-1, -1, hidden.shape[2])
    parts = torch.cat([torch.stack(kept, 1)[..., None] * hidden, torch.stack(passed_on, 1)[..., None] * hidden], 1)
    rows = hidden.new_zeros(len(hidden), max_tokens + 1, hidden.shape[2]).scatter_add(1, index, parts)
    return rows[:, :max_tokens] * length_mask(fired[:, -1].minimum(num_tokens), max_tokens)[:, :, None]

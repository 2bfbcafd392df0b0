"""How many tokens, and which frames they are made of.  Shapes: B batch, T frames, N tokens, D hidden."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from components.layers.dropout import Dropout
from components.layers.masking import length_mask
from components.models.asr.cif import integrate_and_fire, lossy_integrate_and_fire, scale_weights
from utils.errors import UserError

_ROUNDING = 1e-9


@dataclass(slots=True)
class Acoustic:
    """Tokens as heard, before anything is known of the words.

    Attributes:
        embeddings: `[B, N, D]`, zero behind an utterance's tokens.
        lens: `[B]`, its tokens.
        alphas: `[B, T]`, the weights that were integrated: they sum to `lens`, or to less by the tail.
        total: `[B]`, the sum of the weights as predicted: how many tokens were heard.
    """

    embeddings: Tensor
    lens: Tensor
    alphas: Tensor
    total: Tensor


class CifPredictor(nn.Module):
    """Weights of frames by a small convolution, and the tokens they integrate to (Gao et al. 2022, arXiv:2206.08317).

    a = relu(smooth_factor * sigmoid(w . f(H) + b) - noise_threshold), f a convolution over some frames. Where the
    number of tokens is known the weights are scaled to it. Where it is not, a silent frame of weight `tail_threshold`
    is put behind the last: the sum is rounded up from `1 - tail_threshold` on. Padding is not seen; all in float32.

    Args:
        dim: D.
        context: `depthwise`: one depthwise convolution, its input added, dropout (the first form); `full`: convolutions
            over all channels (the form of large models).
        num_layers: convolutions of the `full` form.
        hidden_dim: their width; None for D.
        left, right: frames before and behind that a convolution sees.
        threshold: weight of a token.
        tail_threshold: below `threshold`.
        method: of `integrate_and_fire`.
        exact: False integrates, where the number of tokens is known, as public implementations do, which lose the
            last token of about half of all utterances: an ablation.

    Raises:
        UserError: an unknown `context`; layers or a width for the depthwise form; a threshold for the inexact one.
    """

    def __init__(
        self,
        dim: int,
        context: str = "depthwise",
        num_layers: int = 1,
        hidden_dim: int | None = None,
        left: int = 1,
        right: int = 1,
        dropout: float = 0.1,
        threshold: float = 1.0,
        smooth_factor: float = 1.0,
        noise_threshold: float = 0.0,
        tail_threshold: float = 0.45,
        method: str = "merge",
        exact: bool = True,
    ) -> None:
        super().__init__()
        if context not in ("depthwise", "full"):
            raise UserError(f"predictor.context: {context!r} is none of depthwise, full")
        if context == "depthwise" and (num_layers != 1 or hidden_dim not in (None, dim)):
            raise UserError("predictor: num_layers and hidden_dim belong to context=full")
        if not exact and threshold != 1:
            raise UserError("predictor.threshold: the inexact integration knows only 1")
        self.padding, self.threshold, self.method, self.exact = (left, right), threshold, method, exact
        self.smooth_factor, self.noise_threshold, self.tail_threshold = smooth_factor, noise_threshold, tail_threshold
        self.residual = context == "depthwise"
        widths = [dim] + [hidden_dim or dim] * num_layers
        groups = dim if self.residual else 1
        self.convolutions = nn.ModuleList(
            nn.Conv1d(before, after, left + right + 1, groups=groups) for before, after in pairwise(widths)
        )
        self.dropout = Dropout(dropout if self.residual else 0.0)
        self.out = nn.Linear(widths[-1], 1)

    def forward(
        self, hidden: Tensor, lens: Tensor, num_tokens: Tensor | None = None, max_tokens: int | None = None
    ) -> Acoustic:
        """`hidden [B, T, D]` of `lens [B]` frames to `num_tokens [B]` tokens, N at most, or to as many as are heard."""
        with torch.autocast(hidden.device.type, enabled=False):
            hidden = hidden.float() * length_mask(lens, hidden.shape[1])[:, :, None]
            alphas = self.weights(hidden, lens)
            if num_tokens is None:
                return self._heard(hidden, lens, alphas)
            total = alphas.sum(1)
            if self.exact:
                alphas = scale_weights(alphas, num_tokens, lens, self.threshold)
                rows = integrate_and_fire(hidden, alphas, num_tokens, max_tokens, self.threshold, self.method)
            else:
                alphas = alphas * (num_tokens / total.clamp(min=1e-8))[:, None]
                most = int(num_tokens.max()) if max_tokens is None else max_tokens
                rows = lossy_integrate_and_fire(hidden, alphas, num_tokens, most)
            return Acoustic(rows, num_tokens, alphas, total / self.threshold)

    def weights(self, hidden: Tensor, lens: Tensor) -> Tensor:
        """`[B, T]` float32, zero behind `lens`, of `hidden [B, T, D]` that is zero there."""
        mask = length_mask(lens, hidden.shape[1])
        x = hidden.transpose(1, 2)
        for convolution in self.convolutions:
            seen = convolution(pad(x, self.padding))
            x = self.dropout(seen + x if self.residual else seen).relu() * mask[:, None]
        alphas = self.out(x.transpose(1, 2)).squeeze(-1).sigmoid()
        return (self.smooth_factor * alphas - self.noise_threshold).relu() * mask

    def _heard(self, hidden: Tensor, lens: Tensor, alphas: Tensor) -> Acoustic:
        total = alphas.double().sum(1)
        counts = ((total + self.tail_threshold) / self.threshold + _ROUNDING).floor().long()
        # The frame of the tail is silent: its weight ends a token and adds nothing to it.
        rows = integrate_and_fire(hidden, alphas, counts, threshold=self.threshold, method=self.method)
        return Acoustic(rows, counts, alphas, (total / self.threshold).float())


class EvenPredictor(nn.Module):
    """No predictor, for comparison: the frames of an utterance are divided evenly between its tokens.

    The number of tokens comes from elsewhere: the truth in training, a CTC head's reading, or else the mean number of
    tokens of a frame as seen in training.

    Args:
        method: of `integrate_and_fire`.
    """

    seen: Tensor

    def __init__(self, method: str = "merge") -> None:
        super().__init__()
        self.threshold, self.method = 1.0, method
        self.register_buffer("seen", torch.zeros(2, dtype=torch.float64))  # tokens, frames

    def forward(
        self, hidden: Tensor, lens: Tensor, num_tokens: Tensor | None = None, max_tokens: int | None = None
    ) -> Acoustic:
        """As `CifPredictor.forward`."""
        if num_tokens is None:
            rate = self.seen[0] / self.seen[1].clamp(min=1)
            num_tokens = (lens * rate).round().long()
        elif self.training:
            self.seen += torch.stack([num_tokens.sum(), lens.sum()])
        with torch.autocast(hidden.device.type, enabled=False):
            hidden = hidden.float()
            alphas = scale_weights(torch.zeros_like(hidden[..., 0]), num_tokens, lens)
            rows = integrate_and_fire(hidden, alphas, num_tokens, max_tokens, method=self.method)
        return Acoustic(rows, num_tokens, alphas, num_tokens.float())

"""Connectionist temporal classification.  Shapes: B batch, T encoder frames, D hidden, V vocabulary, N tokens."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn import functional

from components.layers import length_mask
from components.models.asr.types import Encoded, HeadOutput


def ctc_feasible(lens: Tensor, tokens: Tensor, token_lens: Tensor) -> Tensor:
    """Which utterances have an alignment at all: bool `[B]`.

    A frame holds at most one token, and between two equal ones there has to be a blank: exactly where
    T >= U + adjacent repeats, and there is a frame.

    Args:
        lens: `[B]`, frames.
        tokens: `[B, N]`; what lies behind `token_lens [B]` is not looked at.
    """
    repeats = (tokens[:, 1:] == tokens[:, :-1]) & length_mask(token_lens - 1, max(tokens.shape[1] - 1, 0))
    return (lens >= token_lens + repeats.sum(1)) & (lens > 0)


def ctc_loss(
    log_probs: Tensor, lens: Tensor, tokens: Tensor, token_lens: Tensor, blank_id: int = 0
) -> tuple[Tensor, Tensor]:
    """Minus log-probability of each utterance's tokens over all alignments (Graves et al. 2006), and which have one.

    Args:
        log_probs: float32 `[B, T, V]`.
        lens: `[B]`, frames.
        tokens: `[B, N]`; what lies behind `token_lens [B]` is not looked at.

    Returns:
        `[B]`, zero where there is no alignment, with a zero gradient; and bool `[B]`, False there.
    """
    feasible = ctc_feasible(lens, tokens, token_lens)
    # Asked for no tokens, an infeasible utterance has a finite loss, and so a finite gradient to be multiplied by zero.
    wanted = torch.where(feasible, token_lens, 0)
    losses = functional.ctc_loss(
        log_probs.transpose(0, 1), tokens.clamp(min=0), lens, wanted, blank=blank_id, reduction="none"
    )
    return torch.where(feasible, losses, 0.0), feasible


class CtcHead(nn.Module):
    """A linear map to the vocabulary and the CTC loss, of the last layer and of inner ones.

    With inner layers the loss is (1 - w) * last + w * mean of the inner ones, through the same map behind a
    normalisation of their own (Lee & Watanabe 2021, arXiv:2102.03216).

    Args:
        hidden_dim: D.
        vocab_size: V.
        dropout: of the hidden frames.
        intermediate_layers: numbers of the encoder's layers that have a loss as well; the encoder is to be asked for
            them.
        intermediate_weight: w.
        blank_id: id of the blank.
    """

    def __init__(
        self,
        hidden_dim: int,
        vocab_size: int,
        dropout: float = 0.0,
        intermediate_layers: Collection[int] = (),
        intermediate_weight: float = 0.3,
        blank_id: int = 0,
    ) -> None:
        super().__init__()
        self.layers = tuple(intermediate_layers)
        self.intermediate_weight, self.blank_id = intermediate_weight, blank_id
        self.dropout = nn.Dropout(dropout)
        self.inner_norm = nn.LayerNorm(hidden_dim) if self.layers else None
        self.output = nn.Linear(hidden_dim, vocab_size)

    def forward(self, encoded: Encoded, tokens: Tensor, token_lens: Tensor) -> HeadOutput:
        """The loss of `tokens [B, N]`; an utterance that has no alignment is not usable.

        Metrics: `blank_share` of frames and `empty_share` of utterances by the best path (both near 1: the collapse to
        blanks), `greedy_length_ratio` of tokens found to tokens wanted, `infeasible` share of utterances, `inner_loss`.
        """
        log_probs = self.log_probs(encoded)
        per_item, usable = ctc_loss(log_probs, encoded.lens, tokens, token_lens, self.blank_id)
        metrics = greedy_statistics(log_probs.detach(), encoded.lens, token_lens, self.blank_id)
        metrics["infeasible"] = ((~usable).sum(), torch.full_like(usable.sum(), len(usable)))
        if self.layers:
            inner = torch.stack([self._inner_loss(encoded, n, tokens, token_lens) for n in self.layers])
            inner = inner.mean(0)
            per_item = torch.lerp(per_item, inner, self.intermediate_weight)
            metrics["inner_loss"] = (inner.detach().sum(), usable.sum())
        return HeadOutput(per_item, usable, metrics)

    def log_probs(self, encoded: Encoded) -> Tensor:
        """Log-probabilities of every symbol at every frame: float32 `[B, T, V]`."""
        return self._log_probs(encoded.hidden)

    def _inner_loss(self, encoded: Encoded, layer: int, tokens: Tensor, token_lens: Tensor) -> Tensor:
        log_probs = self._log_probs(self.inner_norm(encoded.layers[layer]))
        return ctc_loss(log_probs, encoded.lens, tokens, token_lens, self.blank_id)[0]

    def _log_probs(self, hidden: Tensor) -> Tensor:
        return self.output(self.dropout(hidden)).log_softmax(-1, dtype=torch.float32)


def greedy_statistics(
    log_probs: Tensor, lens: Tensor, token_lens: Tensor, blank_id: int = 0
) -> dict[str, tuple[Tensor, Tensor]]:
    """What the best path through `log_probs [B, T, V]` looks like, as (sum, count): see `CtcHead.forward`."""
    valid = length_mask(lens, log_probs.shape[1])
    best = log_probs.argmax(-1)
    spoken = (best != blank_id) & valid
    begins = spoken.clone()
    begins[:, 1:] &= best[:, 1:] != best[:, :-1]
    return {
        "blank_share": ((valid & ~spoken).sum(), valid.sum()),
        "empty_share": ((~spoken).all(1).sum(), torch.full_like(lens.sum(), len(lens))),
        "greedy_length_ratio": (begins.sum(), token_lens.sum()),
    }

"""Prediction networks of a transducer: what was said before, as a vector.

Shapes: B batch, U = N + 1 places before, between and behind N tokens, P width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

PredictorState = tuple[Tensor, ...]  # each `[B, ...]`, so that beams can be picked out of it


class StatelessPredictor(nn.Module):
    """The last few tokens, embedded, and mapped together by a convolution (Ghodsi et al. 2020, ICASSP).

    Args:
        vocab_size: number of symbols.
        dim: P.
        context: how many tokens are seen.
        dropout: of the embedded tokens.
        blank_id: stands for the time before the first token.
    """

    def __init__(self, vocab_size: int, dim: int, context: int = 2, dropout: float = 0.0, blank_id: int = 0) -> None:
        super().__init__()
        self.output_dim, self.context, self.blank_id = dim, context, blank_id
        self.embedding = nn.Embedding(vocab_size, dim)
        self.dropout = nn.Dropout(dropout)
        self.mix = nn.Linear(context * dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """`tokens [B, N]` to `[B, N + 1, P]`: row u has seen u tokens."""
        seen = pad(tokens, (self.context, 0), value=self.blank_id).unfold(1, self.context, 1)
        return self._of_context(seen)

    def start(self, batch_size: int) -> tuple[Tensor, PredictorState]:
        """Before the first token: `[B, P]` and the state."""
        context = torch.full((batch_size, self.context), self.blank_id, device=self.mix.weight.device)
        return self._of_context(context), (context,)

    def step(self, tokens: Tensor, state: PredictorState) -> tuple[Tensor, PredictorState]:
        """One more token of each, `[B]`: `[B, P]` and the next state."""
        context = torch.cat([state[0][:, 1:], tokens.unsqueeze(1)], dim=1)
        return self._of_context(context), (context,)

    def _of_context(self, context: Tensor) -> Tensor:
        return torch.relu(self.mix(self.dropout(self.embedding(context)).flatten(-2)))


class LstmPredictor(nn.Module):
    """All tokens so far through an LSTM (Graves 2012, arXiv:1211.3711).

    Args:
        vocab_size: number of symbols.
        dim: P, of embedding and layers.
        num_layers: LSTM layers.
        dropout: of the embedded tokens, and between the layers.
        blank_id: stands for the time before the first token.
    """

    def __init__(self, vocab_size: int, dim: int, num_layers: int = 1, dropout: float = 0.0, blank_id: int = 0) -> None:
        super().__init__()
        self.output_dim, self.blank_id = dim, blank_id
        self.embedding = nn.Embedding(vocab_size, dim)
        self.dropout = nn.Dropout(dropout)
        self.lstm = nn.LSTM(dim, dim, num_layers, batch_first=True, dropout=dropout if num_layers > 1 else 0.0)

    def forward(self, tokens: Tensor) -> Tensor:
        """`tokens [B, N]` to `[B, N + 1, P]`: row u has seen u tokens."""
        return self.lstm(self._embed(pad(tokens, (1, 0), value=self.blank_id)))[0]

    def start(self, batch_size: int) -> tuple[Tensor, PredictorState]:
        """Before the first token: `[B, P]` and the state."""
        zeros = self.embedding.weight.new_zeros(batch_size, self.lstm.num_layers, self.output_dim)
        blanks = torch.full((batch_size,), self.blank_id, device=zeros.device)
        return self.step(blanks, (zeros, zeros))

    def step(self, tokens: Tensor, state: PredictorState) -> tuple[Tensor, PredictorState]:
        """One more token of each, `[B]`: `[B, P]` and the next state."""
        memory = tuple(part.transpose(0, 1).contiguous() for part in state)
        hidden, memory = self.lstm(self._embed(tokens.unsqueeze(1)), memory)
        return hidden.squeeze(1), tuple(part.transpose(0, 1) for part in memory)

    def _embed(self, tokens: Tensor) -> Tensor:
        return self.dropout(self.embedding(tokens))

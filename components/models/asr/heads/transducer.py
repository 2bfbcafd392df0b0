"""The transducer.  Shapes: B batch, T encoder frames, D hidden, U = N + 1 places, J joint width, V vocabulary."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from components.models.asr.heads.lattice import transducer_loss
from components.models.asr.heads.predictors import PredictorState
from components.models.asr.types import Encoded, HeadOutput


class TransducerHead(nn.Module):
    """Prediction network, joiner and transducer loss (Graves 2012, arXiv:1211.3711).

    Args:
        hidden_dim: D.
        vocab_size: V.
        predictor: makes a prediction network of `vocab_size`, such as a partial `StatelessPredictor`.
        joint_dim: J.
        dropout: of frames and predictions, before they are joined.
        max_joint_elements: of the logits `[b, T, U, V]` that are in memory at a time; a batch with more is computed in
            parts.
        monotonic: a frame has at most one token, so that a token said twice needs two frames. Otherwise the same frame
            and context have to say the token and then the blank, and repeated tokens are learnt badly.
        blank_id: id of the blank.
    """

    def __init__(
        self,
        hidden_dim: int,
        vocab_size: int,
        predictor: Callable[..., nn.Module],
        joint_dim: int = 256,
        dropout: float = 0.0,
        max_joint_elements: int = 2**25,
        monotonic: bool = False,
        blank_id: int = 0,
    ) -> None:
        super().__init__()
        self.blank_id, self.max_joint_elements, self.monotonic = blank_id, max_joint_elements, monotonic
        self.predictor = predictor(vocab_size=vocab_size, blank_id=blank_id)
        self.dropout = nn.Dropout(dropout)
        self.of_hidden = nn.Linear(hidden_dim, joint_dim)
        self.of_prediction = nn.Linear(self.predictor.output_dim, joint_dim, bias=False)
        self.output = nn.Linear(joint_dim, vocab_size)

    def forward(self, encoded: Encoded, tokens: Tensor, token_lens: Tensor) -> HeadOutput:
        """The loss of `tokens [B, N]`; an utterance without frames, or too few of a monotonic one, is not usable."""
        predictions = self.of_prediction(self.dropout(self.predictor(tokens.clamp(min=0))))
        losses = transducer_loss(
            self.frames(encoded),
            predictions,
            self.output.weight,
            self.output.bias,
            tokens,
            encoded.lens,
            token_lens,
            self.blank_id,
            self.max_joint_elements,
            self.monotonic,
        )
        usable = encoded.lens >= (token_lens.clamp(min=1) if self.monotonic else 1)
        return HeadOutput(torch.where(usable, losses, 0.0), usable)

    def frames(self, encoded: Encoded) -> Tensor:
        """What the joiner takes of the encoder: `[B, T, J]`."""
        return self.of_hidden(self.dropout(encoded.hidden))

    def start(self, batch_size: int) -> tuple[Tensor, PredictorState]:
        """Before the first token: what the joiner takes, `[B, J]`, and the predictor's state."""
        prediction, state = self.predictor.start(batch_size)
        return self.of_prediction(prediction), state

    def step(self, tokens: Tensor, state: PredictorState) -> tuple[Tensor, PredictorState]:
        """Behind one more token of each, `[B]`: what the joiner takes, `[B, J]`, and the next state."""
        prediction, state = self.predictor.step(tokens, state)
        return self.of_prediction(prediction), state

    def log_probs(self, frames: Tensor, predictions: Tensor) -> Tensor:
        """Log-probabilities of the next symbol: `[..., J]` and `[..., J]` to float32 `[..., V]`."""
        return self.output(torch.tanh(frames + predictions)).log_softmax(-1, dtype=torch.float32)

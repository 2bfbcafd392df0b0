"""The attention decoder as a head.  Shapes: B batch, K texts of an utterance, N tokens, T frames, V vocabulary."""

from __future__ import annotations

from math import log

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from components.layers import length_mask
from components.models.asr.heads.transformer_decoder import DecoderCache, TransformerDecoder
from components.models.asr.types import Encoded, HeadOutput

IGNORED = -100


class AttentionHead(nn.Module):
    """A transformer decoder that says a text token by token (Chan et al. 2016; Dong et al. 2018, ICASSP).

    With `reverse_layers` a second one says it from its end, to judge finished texts (Wu et al. 2021, arXiv:2106.05642);
    the loss is then (1 - w) * left to right + w * right to left.

    Args:
        hidden_dim: width of the encoder's frames.
        vocab_size: V.
        dim: width of the decoder.
        num_layers: its layers.
        num_heads: its heads.
        ff_dim: hidden width of its feed-forward.
        dropout: of embedded tokens, attention weights and what each part of a layer adds.
        label_smoothing: share of the probability that the target gives to the V - 1 other symbols; 0 to below 1.
        reverse_layers: layers of the decoder from the right; 0: none.
        reverse_weight: w.
        checkpointing: compute each layer again in the backward pass instead of keeping what it made.
        blank_id: never said.
        bos_id: stands before the first token, never said.
        eos_id: ends a text.
    """

    def __init__(
        self,
        hidden_dim: int,
        vocab_size: int,
        dim: int = 256,
        num_layers: int = 6,
        num_heads: int = 4,
        ff_dim: int = 2048,
        dropout: float = 0.1,
        label_smoothing: float = 0.1,
        reverse_layers: int = 0,
        reverse_weight: float = 0.3,
        checkpointing: bool = False,
        blank_id: int = 0,
        bos_id: int = 2,
        eos_id: int = 3,
    ) -> None:
        super().__init__()
        self.label_smoothing, self.reverse_weight = label_smoothing, reverse_weight
        self.blank_id, self.bos_id, self.eos_id = blank_id, bos_id, eos_id
        sizes = {"dim": dim, "num_heads": num_heads, "ff_dim": ff_dim, "dropout": dropout}
        sizes |= {"hidden_dim": hidden_dim, "vocab_size": vocab_size, "checkpointing": checkpointing}
        self.decoder = TransformerDecoder(num_layers=num_layers, **sizes)
        self.reverse_decoder = TransformerDecoder(num_layers=reverse_layers, **sizes) if reverse_layers else None

    def forward(self, encoded: Encoded, tokens: Tensor, token_lens: Tensor) -> HeadOutput:
        """The loss of `tokens [B, N]` and of the end behind them.

        Metrics: `token_accuracy`, and with a decoder from the right `reverse_accuracy`, of the tokens and ends that
        follow true ones.
        """
        usable = encoded.lens > 0
        losses, accuracy = self._loss(self.decoder, encoded, tokens, token_lens)
        metrics = {"token_accuracy": accuracy}
        if self.reverse_decoder is not None:
            turned = reverse_tokens(tokens, token_lens)
            reverse_losses, metrics["reverse_accuracy"] = self._loss(self.reverse_decoder, encoded, turned, token_lens)
            losses = torch.lerp(losses, reverse_losses, self.reverse_weight)
        return HeadOutput(torch.where(usable, losses, 0.0), usable, metrics)

    def _loss(
        self, decoder: TransformerDecoder, encoded: Encoded, tokens: Tensor, token_lens: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        inputs, targets = self._framed(tokens, token_lens)
        logits = decoder(inputs.unsqueeze(1), encoded.hidden, encoded.lens).squeeze(1)
        losses = smoothed_cross_entropy(logits, targets, self.label_smoothing)
        known = targets != IGNORED
        correct = (logits.detach().argmax(-1) == targets) & known
        return losses.sum(1), (correct.sum(), known.sum())

    def start(self, encoded: Encoded) -> DecoderCache:
        """A cache before the first token, for `step`."""
        return self.decoder.start(encoded.hidden, encoded.lens)

    def step(self, tokens: Tensor, cache: DecoderCache) -> Tensor:
        """What may follow one more token of each text: `tokens [B, K]`, `bos_id` first, to log-probs `[B, K, V]`.

        Float32; what is never said has -inf, the rest is as the model has it.
        """
        log_probs = self.decoder.step(tokens, cache).log_softmax(-1, dtype=torch.float32)
        log_probs[..., [self.blank_id, self.bos_id]] = -torch.inf
        return log_probs

    def score(self, encoded: Encoded, tokens: Tensor, token_lens: Tensor, reverse: bool = False) -> Tensor:
        """Log-probabilities of given texts, several for each utterance, token by token and of their ends.

        Args:
            tokens: `[B, K, N]`; what lies behind `token_lens [B, K]` is not looked at.
            reverse: as the decoder from the right has it; the first of a row is then the last token's.

        Returns:
            Float32 `[B, K, N + 1]`, zero behind the end.
        """
        decoder = self.reverse_decoder if reverse else self.decoder
        inputs, targets = self._framed(reverse_tokens(tokens, token_lens) if reverse else tokens, token_lens)
        log_probs = decoder(inputs, encoded.hidden, encoded.lens).log_softmax(-1, dtype=torch.float32)
        picked = log_probs.gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        return picked.masked_fill(targets == IGNORED, 0.0)

    def attention_maps(self, encoded: Encoded, tokens: Tensor, token_lens: Tensor) -> list[Tensor]:
        """Where each layer listens while it says `tokens [B, N]` and the end: `[B, H, N + 1, T]`, for a picture."""
        inputs, _ = self._framed(tokens, token_lens)
        maps = self.decoder.memory_weights(inputs.unsqueeze(1), encoded.hidden, encoded.lens)
        return [weights.squeeze(1) for weights in maps]

    def _framed(self, tokens: Tensor, token_lens: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs that begin with bos and targets that end with eos, both `[..., N + 1]`; `IGNORED` behind the end."""
        valid = _valid(tokens, token_lens)
        inputs = pad(tokens.where(valid, self.eos_id), (1, 0), value=self.bos_id)
        targets = pad(tokens.where(valid, IGNORED), (0, 1), value=IGNORED)
        return inputs, targets.scatter(-1, token_lens.unsqueeze(-1), self.eos_id)


def reverse_tokens(tokens: Tensor, token_lens: Tensor) -> Tensor:
    """Each row's own `token_lens [...]` of `tokens [..., N]` from last to first, and `IGNORED` behind them."""
    order = token_lens.unsqueeze(-1) - 1 - torch.arange(tokens.shape[-1], device=tokens.device)
    return tokens.gather(-1, order.clamp(min=0)).masked_fill(order < 0, IGNORED)


def smoothed_cross_entropy(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """Divergence of the model from a target that gives `smoothing` to the other symbols together.

    KL(q || softmax(logits)) with q = 1 - e at the target and e / (V - 1) elsewhere; without smoothing the cross entropy
    (Szegedy et al. 2016, arXiv:1512.00567, section 7). Zero for a model that says q.

    Args:
        logits: `[B, N, V]`.
        targets: `[B, N]`, -100 where there is none.
        smoothing: e.

    Returns:
        Float32 `[B, N]`, zero where there is no target.
    """
    vocab_size = logits.shape[-1]
    spread = smoothing * vocab_size / (vocab_size - 1)  # torch spreads over all symbols, the target too
    losses = cross_entropy(
        logits.float().transpose(1, 2), targets, ignore_index=IGNORED, reduction="none", label_smoothing=spread
    )
    if not smoothing:
        return losses
    negative_entropy = (1 - smoothing) * log(1 - smoothing) + smoothing * log(smoothing / (vocab_size - 1))
    return losses + negative_entropy * (targets != IGNORED)


def _valid(tokens: Tensor, token_lens: Tensor) -> Tensor:
    return length_mask(token_lens.flatten(), tokens.shape[-1]).view(tokens.shape)

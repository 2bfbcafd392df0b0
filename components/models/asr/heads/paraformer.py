"""The parallel head.  Shapes: B batch, T encoder frames, N tokens, D hidden, V vocabulary, H heads."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from components.layers.masking import length_mask
from components.losses.minimum_risk import ParallelMinimumRisk
from components.models.asr.cif import token_spans
from components.models.asr.heads.attention import IGNORED, smoothed_cross_entropy
from components.models.asr.heads.cif_predictor import Acoustic, CifPredictor, EvenPredictor
from components.models.asr.heads.paraformer_decoder import ParallelTransformerDecoder
from components.models.asr.heads.sampler import revealed_places, tell
from components.models.asr.types import Encoded, HeadOutput
from utils.errors import UserError

Statistics = dict[str, tuple[Tensor, Tensor]]


@dataclass(slots=True)
class ParallelReading:
    """All tokens of a batch at once.

    Attributes:
        log_probs: float32 `[B, N, V]`, -inf at what is never said; what lies behind `lens` means nothing.
        lens: `[B]`, tokens of each utterance.
        alphas: float32 `[B, T]`, the weights of its frames.
        begins, ends: float64 `[B, N]`, where each token lies, in encoder frames with fractions.
    """

    log_probs: Tensor
    lens: Tensor
    alphas: Tensor
    begins: Tensor
    ends: Tensor


@dataclass(slots=True)
class ParallelTrace:
    """What a picture of the head needs.

    Attributes:
        reading: what it says.
        integral: float64 `[B, T]`, the running sum of the weights, which ends a token at each whole number.
        attention: of each decoder layer `[B, H, N, T]`, what its tokens attend to among the frames.
    """

    reading: ParallelReading
    integral: Tensor
    attention: list[Tensor]


class ParaformerHead(nn.Module):
    """Paraformer (Gao et al. 2022, arXiv:2206.08317): hears how many tokens there are and says them all at once.

    A predictor integrates frames to token embeddings. In training a first pass is made of them; the more of it is
    wrong, the more places get the embedding of the true word, and a second pass has the loss:

        cross entropy + predictor_weight * |tokens heard - N| + risk.weight * expected errors

    each a sum over an utterance. Outside of training there is one pass, of acoustic embeddings alone, and no risk.

    Args:
        hidden_dim: D.
        vocab_size: V.
        decoder: makes, from `memory_dim`, a decoder with its width as `dim`; None for a `ParallelTransformerDecoder`.
        predictor: makes, from `dim`, a `CifPredictor`; None for one as it comes.
        use_predictor: False divides frames evenly between as many tokens as the decoder is told, or as usual: an
            ablation.
        sampling_ratio: told places over wrong places of the first pass; 0 for one pass.
        loss_positions: `all`, or `hidden`: those that were not told.
        first_decoder_weight: of a cross entropy on the first pass, which then has gradients; 0 for none.
        share_embedding: the embedding of words is the output map's; the decoder has the width of the encoder then.
        predictor_weight: of the quantity loss.
        label_smoothing: share of the probability that the target gives to the V - 1 other symbols.
        risk: a loss on the expected number of errors; None for none.
        add_eos: an utterance ends in one more token, `eos_id`, which the predictor counts.
        blank_id, bos_id: never said.
        eos_id: said only at the end, where there is one.

    Raises:
        UserError: an unknown `loss_positions`; a shared embedding of another width.
    """

    def __init__(
        self,
        hidden_dim: int,
        vocab_size: int,
        decoder: Callable[..., nn.Module] | None = None,
        predictor: Callable[..., CifPredictor] | None = None,
        use_predictor: bool = True,
        sampling_ratio: float = 0.75,
        loss_positions: str = "all",
        first_decoder_weight: float = 0.0,
        share_embedding: bool = False,
        predictor_weight: float = 1.0,
        label_smoothing: float = 0.1,
        risk: ParallelMinimumRisk | None = None,
        add_eos: bool = False,
        blank_id: int = 0,
        bos_id: int = 2,
        eos_id: int = 3,
    ) -> None:
        super().__init__()
        if loss_positions not in ("all", "hidden"):
            raise UserError(f"loss_positions: {loss_positions!r} is none of all, hidden")
        self.sampling_ratio, self.loss_positions, self.label_smoothing = sampling_ratio, loss_positions, label_smoothing
        self.first_decoder_weight, self.predictor_weight = first_decoder_weight, predictor_weight
        self.use_predictor, self.add_eos, self.eos_id, self.risk = use_predictor, add_eos, eos_id, risk
        self.never_said = [blank_id, bos_id] if add_eos else [blank_id, bos_id, eos_id]
        make_predictor = (predictor or CifPredictor) if use_predictor else EvenPredictor
        self.predictor = make_predictor(dim=hidden_dim) if use_predictor else make_predictor()
        self.decoder = (decoder or ParallelTransformerDecoder)(memory_dim=hidden_dim)
        dim = self.decoder.dim
        if share_embedding and dim != hidden_dim:
            raise UserError(f"share_embedding: the decoder has {dim} channels, the encoder {hidden_dim}")
        self.input = nn.Identity() if dim == hidden_dim else nn.Linear(hidden_dim, dim)
        self.output = nn.Linear(dim, vocab_size)
        self.embedding = nn.Embedding(vocab_size, dim) if sampling_ratio and not share_embedding else None

    def forward(self, encoded: Encoded, tokens: Tensor, token_lens: Tensor) -> HeadOutput:
        """The loss of `tokens [B, N]`; an utterance without frames is not usable.

        Metrics: `quantity_error`, tokens heard too many or too few; `token_accuracy` of a pass of acoustic embeddings,
        which is what a recognition is; in training `told`, the share of places told, and `risk`, where there is one.
        """
        usable = encoded.lens > 0
        targets, lens = self._targets(tokens, token_lens)
        acoustic = self.predictor(encoded.hidden, encoded.lens, lens, targets.shape[1])
        losses, metrics = self._words(acoustic, encoded, targets, lens)
        if self.use_predictor:
            quantity = (acoustic.total - lens).abs()
            losses = losses + self.predictor_weight * quantity
            metrics["quantity_error"] = ((quantity.detach() * usable).sum(), usable.sum())
        return HeadOutput(torch.where(usable, losses, 0.0), usable, metrics)

    def decode(self, encoded: Encoded, lengths: Tensor | None = None) -> ParallelReading:
        """What is said; `lengths [B]` tokens (the one at the end with them), or None for as many as are heard."""
        return self._decode(encoded, lengths, maps=None)

    def trace(self, encoded: Encoded, lengths: Tensor | None = None) -> ParallelTrace:
        """As `decode`, with what led to it, for a picture."""
        maps: list[Tensor] = []
        reading = self._decode(encoded, lengths, maps)
        return ParallelTrace(reading, reading.alphas.double().cumsum(1) / self.predictor.threshold, maps)

    def _decode(self, encoded: Encoded, lengths: Tensor | None, maps: list[Tensor] | None) -> ParallelReading:
        acoustic = self.predictor(encoded.hidden, encoded.lens, lengths)
        logits = self._say(self.input(acoustic.embeddings), acoustic, encoded, maps)
        spans = token_spans(acoustic.alphas, encoded.lens, logits.shape[1], self.predictor.threshold)
        log_probs = logits.log_softmax(-1, dtype=torch.float32)
        log_probs = log_probs.index_fill(2, torch.tensor(self.never_said, device=logits.device), -torch.inf)
        return ParallelReading(log_probs, acoustic.lens, acoustic.alphas.float(), *spans)

    def _words(self, acoustic: Acoustic, encoded: Encoded, targets: Tensor, lens: Tensor) -> tuple[Tensor, Statistics]:
        """`[B]`, what the words cost, and what there is to say of it."""
        heard = self.input(acoustic.embeddings)
        if not (self.training and self.sampling_ratio):
            logits = self._say(heard, acoustic, encoded)
            losses, metrics = self._cross_entropy(logits, targets).sum(1), _accuracy(logits, targets)
        else:
            with nullcontext() if self.first_decoder_weight else torch.no_grad():
                first = self._say(heard, acoustic, encoded)
            known = targets != IGNORED
            revealed = revealed_places((first.argmax(-1) != targets) & known, lens, self.sampling_ratio)
            logits = self._say(tell(heard, self._embed(targets), revealed), acoustic, encoded)
            counted = known if self.loss_positions == "all" else known & ~revealed
            losses = (self._cross_entropy(logits, targets) * counted).sum(1)
            if self.first_decoder_weight:
                losses = losses + self.first_decoder_weight * self._cross_entropy(first, targets).sum(1)
            metrics = _accuracy(first, targets) | {"told": (revealed.sum(), known.sum())}
        if self.risk is not None and self.training:
            log_probs = logits.log_softmax(-1, dtype=torch.float32)
            risk = self.risk(log_probs, lens, targets.clamp(min=0), lens)
            losses = losses + self.risk.weight * risk
            metrics["risk"] = (risk.detach().sum(), torch.full_like(lens.sum(), len(lens)))
        return losses, metrics

    def _say(
        self, embeddings: Tensor, acoustic: Acoustic, encoded: Encoded, maps: list[Tensor] | None = None
    ) -> Tensor:
        """Logits `[B, N, V]`."""
        embeddings = embeddings * length_mask(acoustic.lens, embeddings.shape[1])[:, :, None]
        return self.output(self.decoder(embeddings, acoustic.lens, encoded.hidden, encoded.lens, maps))

    def _cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        return smoothed_cross_entropy(logits, targets, self.label_smoothing)

    def _embed(self, targets: Tensor) -> Tensor:
        weight = self.output.weight if self.embedding is None else self.embedding.weight
        return nn.functional.embedding(targets.clamp(min=0), weight)

    def _targets(self, tokens: Tensor, token_lens: Tensor) -> tuple[Tensor, Tensor]:
        """`[B, N]` with `IGNORED` behind the end, and `[B]`; with the token at the end where there is one."""
        tokens = tokens.masked_fill(~length_mask(token_lens, tokens.shape[1]), IGNORED)
        if not self.add_eos:
            return tokens, token_lens
        tokens = pad(tokens, (0, 1), value=IGNORED)
        return tokens.scatter(1, token_lens[:, None], self.eos_id), token_lens + 1


def _accuracy(logits: Tensor, targets: Tensor) -> Statistics:
    known = targets != IGNORED
    correct = (logits.detach().argmax(-1) == targets) & known
    return {"token_accuracy": (correct.sum(), known.sum())}

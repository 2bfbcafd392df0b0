"""Decoders that ask the parallel head.

Shapes: B utterances, T encoder frames, N positions, V vocabulary, K texts of an utterance.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from components.decoding.beam import position_beam
from components.decoding.fusion import SumOfScorers
from components.decoding.sampling import draw, keep_top_k, keep_top_p, keyed_uniforms
from components.layers.masking import length_mask
from components.models.asr.heads.paraformer import ParallelReading
from components.models.asr.types import Encoded, Hypothesis
from utils.errors import UserError


class ParaformerDecoder:
    """The best texts of a head that says all tokens at once, with times and confidences.

    Places are independent, so that the best text is the best token of each place, and the K best texts are found
    exactly by going through the places with K of them. Times are where the predictor's weights reach whole numbers.

    Args:
        beam_size: texts that are carried along; above 1 of use for `num_best` and `scorer`.
        num_best: texts returned; None for all.
        tokens_per_position: of so many tokens of a place texts are made; None: of all.
        scorer: adds to the scores of texts: language models, hotwords.
        lengths: `heard`: as many tokens as the predictor hears; `ctc`: as many as the best path of the CTC head has.

    Raises:
        UserError: an unknown `lengths`, or a beam below 1.
    """

    def __init__(
        self,
        beam_size: int = 1,
        num_best: int | None = None,
        tokens_per_position: int | None = None,
        scorer: SumOfScorers | None = None,
        lengths: str = "heard",
    ) -> None:
        if beam_size < 1:
            raise UserError(f"decoder.beam_size: {beam_size} is below 1")
        self.needs = _needs(lengths)
        self.beam_size, self.num_best, self.tokens_per_position = beam_size, num_best, tokens_per_position
        self.scorer, self.lengths = scorer, lengths

    @torch.no_grad()
    def __call__(self, model: Any, encoded: Encoded) -> list[list[Hypothesis]]:
        """Texts of each utterance, best first."""
        reading = read(model, encoded, self.lengths)
        found = position_beam(
            reading.log_probs, reading.lens, self.beam_size, self.tokens_per_position, self.scorer,
            n_best=self.num_best, name="paraformer",
        )  # fmt: skip
        return described(found, reading, model)


class ParaformerSampling:
    """Texts drawn place by place: temperature, then top-k, then nucleus.

    A text's score is its log-probability by the head as it is, before any of these. The same seed gives the same texts,
    alone or in a batch.

    Args:
        temperature: logits are divided by it.
        top_k: of how many symbols one is drawn; None: of all.
        top_p: of the fewest symbols with so much probability one is drawn; 1: of all.
        num_samples: texts of each utterance; returned the most probable first.
        seed: of all utterances, where the call does not give each its own.
        lengths: as in `ParaformerDecoder`.

    Raises:
        UserError: an argument is out of range.
    """

    def __init__(
        self,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        num_samples: int = 1,
        seed: int = 0,
        lengths: str = "heard",
    ) -> None:
        if temperature <= 0:
            raise UserError(f"decoder.temperature: {temperature} is not above 0")
        if not 0 < top_p <= 1:
            raise UserError(f"decoder.top_p: {top_p} is not above 0 and at most 1")
        if top_k is not None and top_k < 1:
            raise UserError(f"decoder.top_k: {top_k} is below 1")
        self.needs = _needs(lengths)
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p
        self.num_samples, self.seed, self.lengths = num_samples, seed, lengths

    @torch.no_grad()
    def __call__(self, model: Any, encoded: Encoded, seeds: Tensor | None = None) -> list[list[Hypothesis]]:
        """Texts of each utterance; `seeds` int64 `[B]`, one of each utterance."""
        reading = read(model, encoded, self.lengths)
        if seeds is None:
            seeds = torch.full_like(reading.lens, self.seed)
        uniforms = keyed_uniforms(seeds, reading.lens, self.num_samples, reading.lens.device)
        kept = self._kept(reading.log_probs)
        tokens = torch.stack([draw(kept, numbers) for numbers in uniforms.unbind(1)], dim=1)
        scores = _scores(reading, tokens)
        found = [
            [Hypothesis(text[:n], score, scores={"paraformer": score}) for text, score in zip(texts, of_texts)]
            for texts, of_texts, n in zip(tokens.tolist(), scores.tolist(), reading.lens.tolist())
        ]
        ranked = [sorted(texts, key=lambda text: -text.score) for texts in found]
        return described(ranked, reading, model)

    def _kept(self, log_probs: Tensor) -> Tensor:
        logits = log_probs / self.temperature
        if self.top_k is not None:
            logits = keep_top_k(logits, self.top_k)
        return keep_top_p(logits, self.top_p) if self.top_p < 1 else logits


def read(model: Any, encoded: Encoded, lengths: str = "heard") -> ParallelReading:
    """What the parallel head of a model says; `lengths` as in `ParaformerDecoder`."""
    head = model.heads["paraformer"]
    if lengths == "heard":
        return head.decode(encoded)
    ctc = model.heads["ctc"]
    return head.decode(encoded, count_ctc_tokens(ctc.log_probs(encoded), encoded.lens, ctc.blank_id) + head.add_eos)


def count_ctc_tokens(log_probs: Tensor, lens: Tensor, blank_id: int = 0) -> Tensor:
    """Tokens of the best path through `log_probs [B, T, V]` of `lens [B]` frames, without repeats and blanks: `[B]`."""
    best = log_probs.argmax(-1)
    begins = (best != blank_id) & length_mask(lens, best.shape[1])
    begins[:, 1:] &= best[:, 1:] != best[:, :-1]
    return begins.sum(1)


def described(found: list[list[Hypothesis]], reading: ParallelReading, model: Any) -> list[list[Hypothesis]]:
    """The same texts, a token for each place of `reading`, with times and confidences, and without the end."""
    head, seconds = model.heads["paraformer"], model.frame_seconds
    begins, ends = ((places * seconds).tolist() for places in (reading.begins, reading.ends))
    probs = reading.log_probs.exp().cpu()
    described = []
    for texts, *times, of_places in zip(found, begins, ends, probs):
        spans = list(zip(*times))
        described.append([_described(text, spans, of_places, head.eos_id) for text in texts])
    return described


def _described(text: Hypothesis, spans: list[tuple[float, float]], probs: Tensor, eos_id: int) -> Hypothesis:
    sure = probs[torch.arange(len(text.tokens)), torch.tensor(text.tokens, dtype=torch.long)].tolist()
    said = [place for place, token in enumerate(text.tokens) if token != eos_id]
    return Hypothesis(
        tokens=[text.tokens[place] for place in said],
        score=text.score,
        times=[spans[place] for place in said],
        confidences=[sure[place] for place in said],
        scores=text.scores,
    )


def _scores(reading: ParallelReading, tokens: Tensor) -> Tensor:
    """`[B, K]` of texts `[B, K, N]`."""
    of_tokens = reading.log_probs.gather(2, tokens.transpose(1, 2))  # [B, N, K]
    return of_tokens.masked_fill(~length_mask(reading.lens, tokens.shape[2])[:, :, None], 0.0).sum(1)


def _needs(lengths: str) -> tuple[str, ...]:
    if lengths not in ("heard", "ctc"):
        raise UserError(f"decoder.lengths: {lengths!r} is none of heard, ctc")
    return ("paraformer",) if lengths == "heard" else ("paraformer", "ctc")

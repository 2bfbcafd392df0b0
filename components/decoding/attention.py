"""Decoders that ask the attention head.  Shapes: B batch, K texts of an utterance, N tokens, T frames, V vocabulary."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from components.decoding.beam import prefix_beam_search
from components.decoding.ctc import add_times
from components.decoding.ctc_prefix_score import CtcPrefixScorer
from components.decoding.label_beam import EndRules, Finished, label_beam
from components.models.asr.types import Encoded, Hypothesis
from utils.errors import UserError


class AttentionBeam:
    """A beam search by the attention decoder alone, for a whole batch.

    Args:
        beam_size: K.
        length_penalty: texts are ranked by log-probability / ((5 + n) / 6)^this, n with the end; 0: not by length.
        max_ratio: longest text, in tokens for each encoder frame.
        min_ratio: shortest text, in tokens for each encoder frame.
        eos_threshold: the end is allowed where its log-probability is above this many times the best other one's, 1.5
            say (Hannun et al. 2019, arXiv:1904.02619); None: everywhere.
        num_best: texts returned; None for K.
    """

    needs: tuple[str, ...] = ("attention",)

    def __init__(
        self,
        beam_size: int = 8,
        length_penalty: float = 0.0,
        max_ratio: float = 1.0,
        min_ratio: float = 0.0,
        eos_threshold: float | None = None,
        num_best: int | None = None,
    ) -> None:
        if length_penalty < 0:
            raise UserError(f"decoder.length_penalty: {length_penalty} is below 0")
        self.beam_size, self.num_best, self.length_penalty = beam_size, num_best, length_penalty
        self.max_ratio, self.min_ratio, self.eos_threshold = max_ratio, min_ratio, eos_threshold

    @torch.no_grad()
    def __call__(self, model: Any, encoded: Encoded) -> list[list[Hypothesis]]:
        return self._listed(self._search(model, encoded))

    def _search(self, model: Any, encoded: Encoded, **ctc: Any) -> Finished:
        head = model.heads["attention"]
        cache = head.start(encoded)

        def next_token(tokens: Tensor, parents: Tensor | None) -> Tensor:
            if parents is not None:
                cache.select(parents)
            return head.step(tokens, cache)

        max_lens = length_limit(encoded.lens, self.max_ratio)
        min_lens = torch.minimum((encoded.lens * self.min_ratio).long(), max_lens)
        rules = EndRules(max_lens, min_lens, self.eos_threshold, self.length_penalty)
        ids = {"bos_id": head.bos_id, "eos_id": head.eos_id}
        return label_beam(next_token, rules, beam_size=self.beam_size, **ids, **ctc)

    def _listed(self, found: Finished) -> list[list[Hypothesis]]:
        columns = (found.scores, found.log_probs, found.ctc, found.num_tokens, found.tokens)
        of_each = zip(*(column.tolist() for column in (*columns, found.token_log_probs.exp())))
        best = []
        for rows in of_each:
            texts = []
            for score, log_prob, ctc, num_tokens, tokens, confidences in zip(*rows):
                if score > -torch.inf:
                    parts = {"attention": log_prob} | ({"ctc": ctc} if "ctc" in self.needs else {})
                    cut = (tokens[:num_tokens], score, None, confidences[:num_tokens])
                    texts.append(Hypothesis(*cut, scores=parts))
            best.append(texts[: self.num_best])
        return best


class JointCtcAttention(AttentionBeam):
    """A beam search in which the CTC head judges every step as well: (1 - w) * attention + w * CTC.

    CTC keeps the decoder from skipping and repeating (Watanabe et al. 2017, IEEE JSTSP 11(8)). The times of an
    utterance's best text are those of the best CTC path through it.

    Args:
        ctc_weight: w, between 0 and 1.
        num_candidates: how many tokens behind each text CTC is asked about, the decoder's best; None: all, which is for
            small vocabularies.
        beam_size: K; this and the others as in `AttentionBeam`.

    Raises:
        UserError: `ctc_weight` is out of range.
    """

    needs = ("attention", "ctc")

    def __init__(
        self,
        ctc_weight: float = 0.3,
        num_candidates: int | None = 16,
        beam_size: int = 8,
        length_penalty: float = 0.0,
        max_ratio: float = 1.0,
        min_ratio: float = 0.0,
        eos_threshold: float | None = None,
        num_best: int | None = None,
    ) -> None:
        super().__init__(beam_size, length_penalty, max_ratio, min_ratio, eos_threshold, num_best)
        if not 0 < ctc_weight < 1:
            raise UserError(f"decoder.ctc_weight: {ctc_weight} is not between 0 and 1")
        self.ctc_weight, self.num_candidates = ctc_weight, num_candidates

    @torch.no_grad()
    def __call__(self, model: Any, encoded: Encoded) -> list[list[Hypothesis]]:
        head = model.heads["ctc"]
        log_probs = head.log_probs(encoded)
        scorer = CtcPrefixScorer(log_probs, encoded.lens, self.beam_size, head.blank_id)
        options = {"ctc_weight": self.ctc_weight, "num_candidates": self.num_candidates}
        found = self._listed(self._search(model, encoded, ctc=scorer, **options))
        _add_times(found, log_probs, encoded.lens, model.frame_seconds)
        return found


class AttentionRescoring:
    """The CTC head proposes texts, the attention decoder judges them all in one pass.

    Score: (1 - r) * left to right + r * right to left + w * what the search gave (Wu et al. 2021, arXiv:2106.05642).
    Times are the search's, or those of the best CTC path through an utterance's best text; confidences the decoder's.

    Args:
        beam_size: texts proposed, K.
        search: with `nbest(log_probs [B, T, V], lens [B], k) -> hypotheses of each utterance`; None: our prefix beam.
        ctc_weight: w.
        reverse_weight: r; above 0 the attention head needs a decoder from the right.
    """

    needs = ("ctc", "attention")

    def __init__(
        self, beam_size: int = 8, search: Any = None, ctc_weight: float = 0.5, reverse_weight: float = 0.0
    ) -> None:
        self.beam_size, self.search = beam_size, search or _PrefixBeam()
        self.ctc_weight, self.reverse_weight = ctc_weight, reverse_weight

    @torch.no_grad()
    def __call__(self, model: Any, encoded: Encoded) -> list[list[Hypothesis]]:
        head, log_probs = model.heads["attention"], model.heads["ctc"].log_probs(encoded)
        never = torch.tensor([head.bos_id, head.eos_id], device=log_probs.device)
        proposed = self.search.nbest(log_probs.index_fill(2, never, -torch.inf), encoded.lens, self.beam_size)
        found = rescore(head, encoded, proposed, self.ctc_weight, self.reverse_weight)
        _add_times(found, log_probs, encoded.lens, model.frame_seconds)
        return found


def rescore(
    head: Any,
    encoded: Encoded,
    proposed: list[list[Hypothesis]],
    proposed_weight: float = 0.5,
    reverse_weight: float = 0.0,
) -> list[list[Hypothesis]]:
    """Texts of each utterance, of any number, in the order that the attention head gives them.

    The scores are those of `AttentionRescoring`.

    Raises:
        UserError: `reverse_weight` is above 0 and the head has no decoder from the right.
    """
    if reverse_weight and head.reverse_decoder is None:
        raise UserError("decoder.reverse_weight: the attention head has no decoder from the right; set it to 0")
    most = max((len(texts) for texts in proposed), default=0)
    if not most:
        return proposed
    tokens, lens = _padded(proposed, most, encoded.hidden.device)
    forward = head.score(encoded, tokens, lens)
    scores = forward.sum(-1)
    if reverse_weight:
        reverse = head.score(encoded, tokens, lens, reverse=True).sum(-1)
        scores = torch.lerp(scores, reverse, reverse_weight)
    return [
        _reordered(texts, *rows, proposed_weight)
        for texts, *rows in zip(proposed, scores.tolist(), forward.exp().tolist())
    ]


def length_limit(lens: Tensor, max_ratio: float) -> Tensor:
    """How many tokens an utterance of `lens [B]` frames may have: at least one."""
    return (lens * max_ratio).ceil().long().clamp(min=1)


def _padded(proposed: list[list[Hypothesis]], most: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Tokens `[B, most, N]` and their numbers `[B, most]`; empty texts where an utterance has fewer."""
    texts = [text.tokens for of_one in proposed for text in [*of_one, *[Hypothesis([], 0.0)] * (most - len(of_one))]]
    lens = torch.tensor([len(text) for text in texts], device=device)
    tokens = pad_sequence([torch.tensor(text, dtype=torch.long) for text in texts], batch_first=True)
    return tokens.to(device).unflatten(0, (-1, most)), lens.view(-1, most)


def _reordered(
    texts: list[Hypothesis], scores: list[float], confidences: list[list[float]], proposed_weight: float
) -> list[Hypothesis]:
    judged = [
        Hypothesis(
            tokens=text.tokens,
            score=score + proposed_weight * text.score,
            times=text.times,
            confidences=sure[: len(text.tokens)],
            scores={"ctc": text.score, **text.scores, "attention": score},
        )
        for text, score, sure in zip(texts, scores, confidences)
    ]
    return sorted(judged, key=lambda text: -text.score)


def _add_times(found: list[list[Hypothesis]], log_probs: Tensor, lens: Tensor, frame_seconds: float) -> None:
    """To each utterance's best text that has none; its confidences stay what they are."""
    untimed = [texts[:1] if texts and texts[0].times is None else [] for texts in found]
    confidences = [text.confidences for texts in untimed for text in texts]
    add_times(untimed, log_probs, lens, frame_seconds)
    for text, sure in zip((text for texts in untimed for text in texts), confidences):
        text.confidences = sure


class _PrefixBeam:
    def nbest(self, log_probs: Tensor, lens: Tensor, k: int) -> list[list[Hypothesis]]:
        return prefix_beam_search(log_probs, lens, k)

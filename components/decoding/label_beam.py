"""A beam search that grows texts token by token, for a whole batch.

Shapes: B batch, K texts of an utterance, N longest text, C candidates, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from components.decoding.ctc_prefix_score import CtcPrefixScorer

# (tokens [B, K], parents [B, K] or None at first) -> log-probabilities [B, K, V] of what follows; -inf: never.
NextToken = Callable[[Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class EndRules:
    """When a text may end, and how lengths are weighed.

    Attributes:
        max_lens: `[B]`; a text of so many tokens ends.
        min_lens: `[B]`; a shorter one does not.
        eos_threshold: the end is allowed where its log-probability is above this many times the best other one's (a
            factor above 1 allows it more; Hannun et al. 2019, arXiv:1904.02619); None: everywhere.
        length_penalty: texts are ranked by log-probability / ((5 + n) / 6)^this, n with the end (Wu et al. 2016,
            arXiv:1609.08144, equation 14).
    """

    max_lens: Tensor
    min_lens: Tensor
    eos_threshold: float | None = None
    length_penalty: float = 0.0

    def norm(self, num_tokens: int | Tensor) -> float | Tensor:
        """By what the log-probability of a text with `num_tokens`, its end among them, is divided."""
        return ((5 + num_tokens) / 6) ** self.length_penalty

    def may_end(self, log_probs: Tensor, eos_id: int, num_tokens: int) -> Tensor:
        """Bool `[B, K]`: may texts of `num_tokens` end, where `log_probs [B, K, V]` says what follows?"""
        allowed = ((num_tokens >= self.min_lens) & (num_tokens <= self.max_lens)).unsqueeze(1)
        if self.eos_threshold is None:
            return allowed.expand(log_probs.shape[:2])
        others = log_probs.clone()
        others[..., eos_id] = -torch.inf
        wanted = log_probs[..., eos_id] > self.eos_threshold * others.amax(-1)
        return allowed & (wanted | (num_tokens == self.max_lens).unsqueeze(1))


@dataclass
class Finished:
    """Texts that have ended, the best first.

    Attributes:
        scores: `[B, K]`, by which they are ranked; -inf where there is none.
        log_probs: `[B, K]`, of the text and its end by the decoder.
        ctc: `[B, K]`, by CTC; 0 without.
        num_tokens: `[B, K]`.
        tokens: `[B, K, N]`.
        token_log_probs: `[B, K, N]`, of each token by the decoder.
    """

    scores: Tensor
    log_probs: Tensor
    ctc: Tensor
    num_tokens: Tensor
    tokens: Tensor
    token_log_probs: Tensor

    def take(self, other: Finished) -> Finished:
        """The best of both."""
        scores, picked = torch.cat([self.scores, other.scores], dim=1).topk(self.scores.shape[1])
        rows = torch.arange(len(picked), device=picked.device).unsqueeze(1)
        names = [field.name for field in fields(self) if field.name != "scores"]
        rest = {name: torch.cat([getattr(self, name), getattr(other, name)], dim=1)[rows, picked] for name in names}
        return Finished(scores, **rest)


def label_beam(
    next_token: NextToken,
    rules: EndRules,
    *,
    beam_size: int,
    bos_id: int,
    eos_id: int,
    ctc: CtcPrefixScorer | None = None,
    ctc_weight: float = 0.0,
    num_candidates: int | None = None,
) -> Finished:
    """The best ended texts; ends when none that still grows can come among them.

    With `ctc`, growing texts are scored by (1 - w) * decoder + w * CTC prefix, ended ones by (1 - w) * decoder +
    w * CTC (Watanabe et al. 2017, IEEE JSTSP 11(8)). With as many beams and candidates as there are texts,
    the search is exact.

    Args:
        beam_size: K.
        ctc_weight: w, between 0 and 1 where there is `ctc`.
        num_candidates: how many tokens behind each text CTC is asked about, the decoder's best; None: all.
    """
    batch, device = len(rules.max_lens), rules.max_lens.device
    rows = torch.arange(batch, device=device).unsqueeze(1)
    longest = int(rules.max_lens.max())
    tokens, parents = torch.full((batch, beam_size), bos_id, device=device), None
    live = _nothing(batch, beam_size, longest, device)
    done = live
    live.log_probs[:, 0] = 0.0
    for num_tokens in range(longest + 1):
        log_probs = next_token(tokens, parents)
        ended = _ended(live, log_probs, rules, num_tokens, eos_id, ctc, ctc_weight)
        done = done.take(ended)
        if num_tokens == longest:
            break
        log_probs[..., eos_id] = -torch.inf
        log_probs = log_probs.masked_fill((num_tokens >= rules.max_lens).view(-1, 1, 1), -torch.inf)
        total = _grown(live.log_probs, log_probs, ctc, ctc_weight, num_candidates)
        scores, picked = total.flatten(1).topk(beam_size)
        # A text only loses by growing, so its score over the largest norm bounds what may become of it.
        bound = scores[:, 0] / rules.norm(rules.max_lens + 1)
        if bool((bound <= done.scores[:, -1]).all()):
            break
        vocab_size = log_probs.shape[-1]
        parents, tokens = picked.div(vocab_size, rounding_mode="floor"), picked.remainder(vocab_size)
        live = _append(live, rows, parents, tokens, log_probs[rows, parents, tokens], num_tokens)
        if ctc is not None:
            ctc.advance(parents, tokens)
    return done


def _nothing(batch: int, beam_size: int, longest: int, device: torch.device) -> Finished:
    none = torch.full((batch, beam_size), -torch.inf, device=device)
    zeros = torch.zeros_like(none)
    history = zeros.unsqueeze(-1).expand(-1, -1, longest)
    return Finished(none, none.clone(), zeros, zeros.long(), history.long(), history)


def _ended(
    live: Finished,
    log_probs: Tensor,
    rules: EndRules,
    num_tokens: int,
    eos_id: int,
    ctc: CtcPrefixScorer | None,
    ctc_weight: float,
) -> Finished:
    """Each growing text, were it to end here."""
    by_decoder = live.log_probs + log_probs[..., eos_id]
    by_ctc = torch.zeros_like(by_decoder) if ctc is None else ctc.finish().to(by_decoder.dtype)
    total = by_decoder if ctc is None else (1 - ctc_weight) * by_decoder + ctc_weight * by_ctc
    scores = (total / rules.norm(num_tokens + 1)).masked_fill(~rules.may_end(log_probs, eos_id, num_tokens), -torch.inf)
    counts = torch.full_like(live.num_tokens, num_tokens)
    return Finished(scores, by_decoder, by_ctc, counts, live.tokens, live.token_log_probs)


def _grown(
    before: Tensor, log_probs: Tensor, ctc: CtcPrefixScorer | None, ctc_weight: float, num_candidates: int | None
) -> Tensor:
    """Scores `[B, K, V]` of each text with each token behind it; -inf for those CTC was not asked about."""
    total = before.unsqueeze(-1) + log_probs
    if ctc is None:
        return total
    best, candidates = total.topk(min(num_candidates or total.shape[-1], total.shape[-1]))
    best = (1 - ctc_weight) * best + ctc_weight * ctc.score(candidates).to(best.dtype)
    return torch.full_like(total, -torch.inf).scatter_(-1, candidates, best)


def _append(live: Finished, rows: Tensor, parents: Tensor, tokens: Tensor, log_probs: Tensor, place: int) -> Finished:
    history, of_tokens = live.tokens[rows, parents], live.token_log_probs[rows, parents]
    history[..., place], of_tokens[..., place] = tokens, log_probs
    total = live.log_probs[rows, parents] + log_probs
    return Finished(live.scores, total, live.ctc, live.num_tokens, history, of_tokens)

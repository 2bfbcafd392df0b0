"""The CTC probability of texts that begin in a given way.

Shapes: B batch, K prefixes of an utterance, C candidates, T frames, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

_IMPOSSIBLE = -1e4  # stands for log 0, so that differences of sums of it stay numbers


class CtcPrefixScorer:
    """Log-probability that an utterance's text begins with a prefix, for all prefixes of a batch at once.

    The forward recursions of Watanabe et al. 2017 (IEEE JSTSP 11(8)) are linear in what they carry, so
    that each has a closed form, a cumulative sum in float64, and no loop over frames: with P_t the product of p_1..p_t,
    x_t = (x_{t-1} + y_t) p_t gives x_t = P_t sum_{s<=t} y_s / P_{s-1}.

    Starts with K empty prefixes of each utterance.

    Args:
        log_probs: `[B, T, V]`.
        lens: `[B]`, frames.
        num_prefixes: K.
        blank_id: id of the blank.
    """

    def __init__(self, log_probs: Tensor, lens: Tensor, num_prefixes: int, blank_id: int = 0) -> None:
        batch, num_frames = log_probs.shape[:2]
        self._rows = torch.arange(batch, device=lens.device).unsqueeze(1)
        inside = torch.arange(num_frames, device=lens.device) < lens.unsqueeze(1)
        # [B, V, T]: what a candidate needs lies together.
        self._log_probs = log_probs.double().clamp(min=_IMPOSSIBLE).transpose(1, 2)
        self._inside = inside.view(batch, 1, 1, num_frames)
        self._lens = lens.view(batch, 1, 1).expand(-1, num_prefixes, 1)
        self._blank_sums = _sums(self._log_probs[:, blank_id].unsqueeze(1))
        # Of the first t frames, t from 0 to T: to say exactly the prefix, and to end in a blank, or in its token.
        self._in_blank = self._blank_sums.expand(-1, num_prefixes, -1)
        self._in_token = torch.full_like(self._in_blank, -torch.inf)
        self._last = torch.full((batch, num_prefixes), -1, device=lens.device)

    def score(self, candidates: Tensor) -> Tensor:
        """Of each prefix with a candidate `[B, K, C]` behind it, as the beginning of the text: float64 `[B, K, C]`."""
        num_candidates = candidates.shape[2]
        log_probs = self._log_probs[self._rows, candidates.flatten(1)].unflatten(1, (-1, num_candidates))
        repeats = (candidates == self._last.unsqueeze(-1)).unsqueeze(-1)
        before = self._before(self._in_blank.unsqueeze(2), self._in_token.unsqueeze(2), repeats)
        return (before + log_probs).masked_fill(~self._inside, -torch.inf).logsumexp(-1)

    def finish(self) -> Tensor:
        """Of each prefix as the whole text: float64 `[B, K]`."""
        return torch.logaddexp(self._in_blank, self._in_token).gather(2, self._lens).squeeze(2)

    def advance(self, parents: Tensor, tokens: Tensor) -> None:
        """Prefix k becomes what was prefix `parents[b, k]` with `tokens[b, k]` behind it, both `[B, K]`."""
        in_blank, in_token = self._in_blank[self._rows, parents], self._in_token[self._rows, parents]
        repeats = (tokens == self._last[self._rows, parents]).unsqueeze(-1)
        sums = _sums(self._log_probs[self._rows, tokens])
        self._in_token = _recur(self._before(in_blank, in_token, repeats), sums)
        self._in_blank = _recur(self._in_token[..., :-1], self._blank_sums)
        self._last = tokens

    @staticmethod
    def _before(in_blank: Tensor, in_token: Tensor, repeats: Tensor) -> Tensor:
        """To have said the prefix in t frames, t from 0 to T - 1, so that a token may come: a repeat needs a blank."""
        both = torch.logaddexp(in_blank, in_token)
        return torch.where(repeats, in_blank, both)[..., :-1]


def _sums(log_probs: Tensor) -> Tensor:
    """Log P_t for t from 0 to T: `[..., T]` to `[..., T + 1]`."""
    return torch.nn.functional.pad(log_probs.cumsum(-1), (1, 0))


def _recur(entering: Tensor, sums: Tensor) -> Tensor:
    """Log x_t for t from 0 to T of `log y [..., T]` and `log P [..., T + 1]`, from x_0 = 0."""
    carried = sums[..., 1:] + (entering - sums[..., :-1]).logcumsumexp(-1)
    return torch.nn.functional.pad(carried, (1, 0), value=-torch.inf)

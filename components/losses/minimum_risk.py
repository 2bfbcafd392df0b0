"""Training for the errors that count.  Shapes: B batch, N tokens, V vocabulary, M candidates."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from components.layers.masking import length_mask
from utils.errors import UserError


def expected_risk(scores: Tensor, errors: Tensor, counted: Tensor | None = None) -> Tensor:
    """The expected number of errors among some candidates, less their mean number: `[B]`.

    With P(h) = exp(score_h) / sum over the candidates, it is `sum_h P(h) (W_h - mean W)` (Prabhavalkar et al. 2018,
    arXiv:1712.01818, equation 4). The mean changes no gradient of a full set of candidates, and lowers the variance of
    a drawn one. Zero, without gradient, where all candidates have the same number of errors.

    Args:
        scores: `[B, M]`, log-probabilities.
        errors: `[B, M]`, W.
        counted: bool `[B, M]`; False leaves a candidate out. At least one of a row is counted. None for all.
    """
    counted = torch.ones_like(errors, dtype=torch.bool) if counted is None else counted
    shares = scores.float().masked_fill(~counted, -torch.inf).softmax(1)
    errors = errors.float()
    mean = (errors * counted).sum(1) / counted.sum(1)
    return (shares * (errors - mean[:, None]) * counted).sum(1)


def edit_distance(hyps: Tensor, hyp_lens: Tensor, refs: Tensor, ref_lens: Tensor) -> Tensor:
    """Substitutions, insertions and deletions between rows of ids, int64 `[R]`, on the device where they are.

    The loop is over the places of a hypothesis; all rows, and all places of the references, go together: the insertions
    of a row of the table are a running minimum.

    Args:
        hyps: `[R, N]`, any ids behind `hyp_lens [R]`.
        refs: `[R, U]`, any ids behind `ref_lens [R]`.
    """
    places = torch.arange(refs.shape[1] + 1, device=refs.device)
    row = places.expand(len(refs), -1)
    result = row.gather(1, ref_lens[:, None])
    for n in range(hyps.shape[1]):
        substituted = row[:, :-1] + (hyps[:, n : n + 1] != refs)
        row = torch.cat([row[:, :1] + 1, substituted.minimum(row[:, 1:] + 1)], dim=1)
        row = (row - places).cummin(1).values + places
        result = torch.where((hyp_lens == n + 1)[:, None], row.gather(1, ref_lens[:, None]), result)
    return result[:, 0]


def distinct(candidates: Tensor, lens: Tensor) -> Tensor:
    """bool `[B, M]`: False for candidates `[B, M, N]` that repeat an earlier one in their first `lens [B]` tokens."""
    own = length_mask(lens, candidates.shape[2])[:, None, None]
    same = ((candidates[:, :, None] == candidates[:, None]) | ~own).all(-1)
    return ~same.tril(-1).any(-1)


class ParallelMinimumRisk(nn.Module):
    """Minimum word error rate for a decoder that says all tokens at once (Gao et al. 2022, arXiv:2206.08317, 3.4).

    Such a decoder has one best path, so the others are made from it: at places chosen at random, the second best token
    stands for the best. As places are independent, a candidate's log-probability is the sum over its tokens, exactly.

    Args:
        num_candidates: M, the best path among them; candidates drawn twice count once.
        share: probability of a place to be changed.
        weight: of this loss in the head's sum.

    Raises:
        UserError: fewer than two candidates, or a share outside of (0, 1].
    """

    def __init__(self, num_candidates: int = 4, share: float = 0.2, weight: float = 1.0) -> None:
        super().__init__()
        if num_candidates < 2 or not 0 < share <= 1:
            raise UserError(f"num_candidates must be at least 2, share in (0, 1]: not {num_candidates} and {share}")
        self.num_candidates, self.share, self.weight = num_candidates, share, weight

    def forward(self, log_probs: Tensor, lens: Tensor, tokens: Tensor, token_lens: Tensor) -> Tensor:
        """`log_probs [B, N, V]` of `lens [B]` places, and the true `tokens [B, U]`, to the expected risk `[B]`."""
        with torch.no_grad():
            candidates = self.candidates(log_probs)
            repeated = [x.repeat_interleave(self.num_candidates, 0) for x in (lens, tokens, token_lens)]
            errors = edit_distance(candidates.flatten(0, 1), *repeated).view(candidates.shape[:2])
        return expected_risk(path_scores(log_probs, candidates, lens), errors, distinct(candidates, lens))

    def candidates(self, log_probs: Tensor) -> Tensor:
        """`[B, M, N]`, the best path first; places drawn from the global generator."""
        best, second = log_probs.topk(2, dim=-1).indices.unbind(-1)
        shape = (len(best), self.num_candidates - 1, best.shape[1])
        changed = torch.rand(shape, device=best.device) < self.share
        return torch.cat([best[:, None], second[:, None].where(changed, best[:, None])], dim=1)


def path_scores(log_probs: Tensor, candidates: Tensor, lens: Tensor) -> Tensor:
    """`[B, M]`: log-probability of candidates `[B, M, N]` whose places are independent, of `log_probs [B, N, V]`."""
    of_tokens = log_probs.gather(2, candidates.transpose(1, 2))  # [B, N, M]
    return (of_tokens * length_mask(lens, log_probs.shape[1])[:, :, None]).sum(1)

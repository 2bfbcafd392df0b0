"""Texts drawn at random.  Shapes: B batch, K texts of an utterance, N tokens, V vocabulary."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from components.decoding.attention import length_limit
from components.models.asr.types import Encoded, Hypothesis
from utils.errors import UserError


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """`[..., V]` with -inf below the k greatest (Fan et al. 2018, arXiv:1805.04833); what equals the k-th stays."""
    least = logits.topk(min(k, logits.shape[-1])).values[..., -1:]
    return logits.masked_fill(logits < least, -torch.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """`[..., V]` with -inf outside of the nucleus: the fewest symbols whose probabilities reach p.

    Holtzman et al. 2020, arXiv:1904.09751, section 3.1. Each row has a nucleus of its own, of at least one symbol.
    """
    values, order = logits.sort(dim=-1)
    outside = values.softmax(-1).cumsum(-1) <= 1 - p
    outside[..., -1] = False
    return logits.masked_fill(torch.zeros_like(outside).scatter_(-1, order, outside), -torch.inf)


def draw(logits: Tensor, uniforms: Tensor) -> Tensor:
    """A symbol of each row of `logits [..., V]`, by a number `[...]` in [0, 1) through the inverse distribution."""
    sums = logits.double().softmax(-1).cumsum(-1)
    picked = torch.searchsorted(sums, (uniforms.double() * sums[..., -1]).unsqueeze(-1), right=True)
    return picked.squeeze(-1)


def keyed_uniforms(seeds: Tensor, lens: Tensor, num_texts: int, device: torch.device | str = "cpu") -> Tensor:
    """Numbers in [0, 1) by `seeds [B]`, `lens [B]` for each text: float32 `[B, num_texts, N]`, zero behind them.

    An item's numbers depend on its seed and length alone: the same in any batch and on any device.
    """
    numbers = torch.zeros(len(seeds), num_texts, int(lens.max()))
    for rows, seed, length in zip(numbers, seeds.tolist(), lens.tolist()):
        rows[:, :length] = torch.rand(num_texts, length, generator=torch.Generator().manual_seed(seed))
    return numbers.to(device)


class AttentionSampling:
    """Texts drawn from the attention decoder token by token: temperature, then top-k, then nucleus.

    A text's score is its log-probability by the decoder as it is, before any of these. The same seed gives the same
    texts, alone or in a batch.

    Args:
        temperature: logits are divided by it.
        top_k: of how many symbols one is drawn; None: of all.
        top_p: of the fewest symbols with so much probability one is drawn; 1: of all.
        num_samples: texts of each utterance, K; returned the most probable first.
        seed: of all utterances, where the call does not give each its own.
        max_ratio: longest text, in tokens for each encoder frame.

    Raises:
        UserError: an argument is out of range.
    """

    needs = ("attention",)

    def __init__(
        self,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        num_samples: int = 1,
        seed: int = 0,
        max_ratio: float = 1.0,
    ) -> None:
        if temperature <= 0:
            raise UserError(f"decoder.temperature: {temperature} is not above 0")
        if not 0 < top_p <= 1:
            raise UserError(f"decoder.top_p: {top_p} is not above 0 and at most 1")
        if top_k is not None and top_k < 1:
            raise UserError(f"decoder.top_k: {top_k} is below 1")
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p
        self.num_samples, self.seed, self.max_ratio = num_samples, seed, max_ratio

    @torch.no_grad()
    def __call__(self, model: Any, encoded: Encoded, seeds: Tensor | None = None) -> list[list[Hypothesis]]:
        """Texts of each utterance; `seeds` int64 `[B]`, one of each utterance."""
        head = model.heads["attention"]
        lens = encoded.lens
        limit = length_limit(lens, self.max_ratio)
        seeds = torch.full_like(lens, self.seed) if seeds is None else seeds
        uniforms = keyed_uniforms(seeds, limit + 1, self.num_samples, lens.device)
        cache = head.start(encoded)
        tokens = torch.full((len(lens), self.num_samples), head.bos_id, device=lens.device)
        ended = torch.zeros_like(tokens, dtype=torch.bool)
        said, log_probs = [], []
        for number in range(int(limit.max()) + 1):
            step = head.step(tokens, cache)
            at_limit = (number >= limit).unsqueeze(1)
            drawn = draw(self._kept(step), uniforms[..., number])
            tokens = drawn.masked_fill(at_limit | ended, head.eos_id)
            log_probs.append(step.gather(-1, tokens.unsqueeze(-1)).squeeze(-1).masked_fill(ended, 0.0))
            said.append(tokens)
            ended = ended | (tokens == head.eos_id)
            if bool(ended.all()):
                break
        return _listed(torch.stack(said, dim=-1), torch.stack(log_probs, dim=-1), head.eos_id)

    def _kept(self, log_probs: Tensor) -> Tensor:
        logits = log_probs / self.temperature
        if self.top_k is not None:
            logits = keep_top_k(logits, self.top_k)
        return keep_top_p(logits, self.top_p) if self.top_p < 1 else logits


def _listed(tokens: Tensor, log_probs: Tensor, eos_id: int) -> list[list[Hypothesis]]:
    """Rows `[B, K, N]` up to their ends."""
    best = []
    for rows in zip(tokens.tolist(), log_probs.sum(-1).tolist(), log_probs.exp().tolist()):
        texts = []
        for text, score, confidences in zip(*rows):
            length = text.index(eos_id)
            parts = {"attention": score}
            texts.append(Hypothesis(text[:length], score, confidences=confidences[:length], scores=parts))
        best.append(sorted(texts, key=lambda hypothesis: -hypothesis.score))
    return best

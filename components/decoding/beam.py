"""Beam searches over frames of log-probabilities, for a whole batch at once and on any device.

Shapes: B utterances, T frames, N positions, V tokens, K prefixes of each utterance, P candidate tokens of a frame.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from components.decoding.fusion import SumOfScorers
from components.layers.masking import length_mask
from components.models.asr.types import Hypothesis
from utils.errors import UserError

_NOWHERE = -float("inf")
_HASH_STEP = 0x5851F42D4C957F2D  # multiplier of a 64-bit linear congruential generator (Knuth, MMIX)
_EMPTY_HASH, _DEAD_HASH = 0x1F83D9ABFB41BD6B, 0x3C6EF372FE94F82B


@dataclass
class _Candidates:
    """Tokens that may lengthen a prefix in a frame.

    Attributes:
        tokens: `[B, P]`.
        scores: `[B, P]`, their log-probabilities.
        place: `[B, V]`, where each token is among them; P for one that is not.
    """

    tokens: Tensor
    scores: Tensor
    place: Tensor


@dataclass
class _Beams:
    """Prefixes; all `[B, K]` but `state [B, K, S]`.

    Attributes:
        blank, token: log-probability of all paths that end in a blank, and in the prefix's last token.
        bonus: what the scorer said so far.
        prefix, parent: hashes of the prefix and of the prefix less its last token.
        last: that token; the blank for the empty prefix.
    """

    blank: Tensor
    token: Tensor
    bonus: Tensor
    prefix: Tensor
    parent: Tensor
    last: Tensor
    state: Tensor | None


@torch.inference_mode()
def prefix_beam_search(
    log_probs: Tensor,
    lens: Tensor,
    beam_size: int = 10,
    tokens_per_frame: int | None = None,
    scorer: SumOfScorers | None = None,
    n_best: int | None = None,
    blank_id: int = 0,
) -> list[list[Hypothesis]]:
    """The most probable token sequences under CTC, summed over their paths (Hannun et al. 2014, arXiv 1408.2873).

    Prefixes that can be reached in two ways are found by rolling hashes: of those in the beam only one whose parent is
    there as well can be, so K x K comparisons settle it.

    Args:
        log_probs: `[B, T, V]`, natural logarithms.
        lens: `[B]`, frames of each utterance.
        beam_size: K; the search is exact where it is at least the number of possible prefixes.
        tokens_per_frame: a prefix is lengthened by the P most probable tokens of a frame only; None: by all.
        scorer: adds to the score of every prefix.
        n_best: hypotheses to give back of each utterance; None: all K.
        blank_id: the blank.

    Returns:
        For each utterance its hypotheses, best first, with `scores` by part: `ctc` and what the scorer is made of.

    Raises:
        UserError: a log-probability is not a number.
    """
    frames = _cover_padding(log_probs, lens, blank_id)
    width = tokens_per_frame
    if scorer is None:
        # without a scorer nothing else comes into the beam: of the K + 1 best tokens at most one is a prefix's last,
        # and each of the others makes of it a better prefix than a token beyond them
        width = min(beam_size + 1, width or beam_size + 1)
    beams = _empty_prefix(len(frames), beam_size, frames, scorer, blank_id)
    sources, added = [], []
    for frame, candidates in zip(frames.unbind(1), _candidates(frames, width, blank_id)):
        beams, source, token = _step(beams, frame, candidates, scorer, blank_id)
        sources.append(source)
        added.append(token)
    acoustic = torch.logaddexp(beams.blank, beams.token)
    return _hypotheses(acoustic, beams.bonus, beams.state, sources, added, scorer, n_best or beam_size, "ctc")


@torch.inference_mode()
def position_beam(
    log_probs: Tensor,
    lens: Tensor,
    beam_size: int = 10,
    tokens_per_position: int | None = None,
    scorer: SumOfScorers | None = None,
    n_best: int | None = None,
    forbidden_ids: Sequence[int] = (),
    name: str = "acoustic",
) -> list[list[Hypothesis]]:
    """The best sequences where every position is one token and there is no blank, as a Paraformer decodes.

    Without a scorer the first hypothesis is the most probable token of each position.

    Args:
        log_probs: `[B, N, V]`, natural logarithms.
        lens: `[B]`, tokens of each utterance.
        beam_size: K; the search is exact where it is at least the number of sequences.
        tokens_per_position: only the P most probable tokens of a position are looked at; None: all.
        scorer: adds to the score of every prefix.
        n_best: hypotheses to give back of each utterance; None: all K.
        forbidden_ids: tokens that no hypothesis has.
        name: of this part in `scores`.

    Returns:
        For each utterance its hypotheses, best first.
    """
    scores = log_probs if log_probs.dtype == torch.float64 else log_probs.float()
    if len(forbidden_ids):
        scores = scores.index_fill(2, torch.tensor(forbidden_ids, device=scores.device), _NOWHERE)
    batch, _, vocab_size = scores.shape
    best, tokens = scores.topk(min(tokens_per_position or vocab_size, vocab_size), dim=2)
    acoustic = scores.new_full((batch, beam_size), _NOWHERE)
    acoustic[:, 0] = 0.0
    bonus = torch.zeros_like(acoustic)
    state = None if scorer is None else scorer.start(batch, scores.device).expand(-1, beam_size, -1)
    sources, added = [], []
    stay = torch.arange(beam_size, device=scores.device).expand(batch, -1)
    for position in range(scores.shape[1]):
        active = (position < lens).unsqueeze(1)
        here = tokens[:, position]
        longer = acoustic.unsqueeze(2) + best[:, position].unsqueeze(1)
        gain = torch.zeros_like(longer)
        if scorer is not None:
            gain = gain + scorer.extend(state, here)
        total = longer + gain + bonus.unsqueeze(2)
        chosen = total.flatten(1).topk(beam_size, dim=1).indices
        source = torch.where(active, chosen // here.shape[1], stay)
        token = torch.where(active, here.gather(1, chosen % here.shape[1]), -1)
        acoustic = torch.where(active, longer.flatten(1).gather(1, chosen), acoustic)
        bonus = bonus.gather(1, source) + torch.where(active, gain.flatten(1).gather(1, chosen), 0.0)
        if scorer is not None:
            state, adjustment = scorer.advance(state.gather(1, source.unsqueeze(2).expand_as(state)), token)
            bonus = bonus + adjustment
        sources.append(source)
        added.append(token)
    return _hypotheses(acoustic, bonus, state, sources, added, scorer, n_best or beam_size, name)


def _cover_padding(log_probs: Tensor, lens: Tensor, blank_id: int) -> Tensor:
    """In frames behind an utterance's end the blank is certain, which changes nothing about any prefix."""
    frames = log_probs if log_probs.dtype == torch.float64 else log_probs.float()
    silence = frames.new_full((frames.shape[2],), _NOWHERE)
    silence[blank_id] = 0.0
    frames = torch.where(length_mask(lens, frames.shape[1]).unsqueeze(2), frames, silence)
    if bool(frames.isnan().any()):
        raise UserError("the log-probabilities to decode are not all numbers: has the training diverged?")
    return frames


def _candidates(frames: Tensor, width: int | None, blank_id: int) -> Iterator[_Candidates]:
    """Of every frame all tokens, or its `width` best."""
    batch, _, vocab_size = frames.shape
    every = torch.arange(vocab_size, device=frames.device)
    if width is None or width >= vocab_size - 1:
        tokens = every[every != blank_id]
        place = torch.full_like(every, len(tokens))
        place[tokens] = every[: len(tokens)]
        tokens, place = tokens.expand(batch, -1), place.expand(batch, -1)
        for frame in frames.unbind(1):
            yield _Candidates(tokens, frame.gather(1, tokens), place)
        return
    scores, tokens = frames.index_fill(2, every[blank_id], _NOWHERE).topk(width, dim=2)
    nowhere = every.new_full((batch, vocab_size), width)
    for of_frame, its_scores in zip(tokens.unbind(1), scores.unbind(1)):
        place = nowhere.scatter(1, of_frame, every[:width].expand(batch, -1))
        yield _Candidates(of_frame, its_scores, place)


def _empty_prefix(batch: int, size: int, frames: Tensor, scorer: SumOfScorers | None, blank_id: int) -> _Beams:
    """One prefix, the empty one, and places for more."""
    nowhere = frames.new_full((batch, size), _NOWHERE)
    places = torch.arange(size, device=frames.device).expand(batch, -1)
    blank, prefix = nowhere.clone(), _DEAD_HASH + places
    blank[:, 0], prefix[:, 0] = 0.0, _EMPTY_HASH
    state = None if scorer is None else scorer.start(batch, frames.device).expand(-1, size, -1)
    last = torch.full_like(prefix, blank_id)
    return _Beams(blank, nowhere, torch.zeros_like(blank), prefix, -_DEAD_HASH - places, last, state)


def _step(
    beams: _Beams, frame: Tensor, candidates: _Candidates, scorer: SumOfScorers | None, blank_id: int
) -> tuple[_Beams, Tensor, Tensor]:
    """One frame `[B, V]`: the new prefixes, which of the old ones each comes from, and its new token or -1."""
    batch, size = beams.blank.shape
    width = candidates.tokens.shape[1] + 1  # one more, that leads nowhere
    blank, token, longer = _all_ways(beams, frame, candidates, blank_id)
    stay, go, gain = torch.logaddexp(blank, token), longer, None
    if scorer is not None:
        gain = scorer.extend(beams.state, candidates.tokens).expand(batch, size, width - 1)
        go = longer + beams.bonus.unsqueeze(2)
        go[..., :-1] += gain
        stay = stay + beams.bonus
    best, chosen = torch.cat([stay, go.view(batch, -1)], dim=1).topk(size, dim=1)
    stays, dead, chosen_way = chosen < size, best == _NOWHERE, (chosen - size).clamp(min=0)
    source = torch.where(stays, chosen, chosen_way // width)
    column = (chosen_way % width).clamp(max=width - 2)
    new = torch.where(stays, -1, candidates.tokens.gather(1, column))

    was, places = beams.prefix.gather(1, source), torch.arange(size, device=frame.device)
    prefix = torch.where(stays, was, was * _HASH_STEP + (new + 1))
    parent = torch.where(stays, beams.parent.gather(1, source), was)
    bonus, state = beams.bonus, beams.state
    if scorer is not None:
        bonus = bonus.gather(1, source) + torch.where(
            stays, 0.0, gain.reshape(batch, -1).gather(1, source * (width - 1) + column)
        )
        state, adjustment = scorer.advance(state.gather(1, source.unsqueeze(2).expand_as(state)), new)
        bonus = bonus + adjustment
    following = _Beams(
        blank=torch.where(stays, blank.gather(1, source), _NOWHERE),
        token=torch.where(stays, token.gather(1, source), longer.view(batch, -1).gather(1, chosen_way)),
        bonus=bonus,
        # a place without a prefix is like no other, and nobody's parent
        prefix=torch.where(dead, _DEAD_HASH + places, prefix),
        parent=torch.where(dead, -_DEAD_HASH - places, parent),
        last=torch.where(stays, beams.last.gather(1, source), new),
        state=state,
    )
    return following, source, new


def _all_ways(beams: _Beams, frame: Tensor, candidates: _Candidates, blank_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of staying with a prefix by a blank and by its last token, `[B, K]`, and of lengthening it.

    The last, `[B, K, P + 1]`, leaves out what the second has already: prefixes that are in the beam.
    """
    batch, num_tokens = candidates.tokens.shape
    ended, last_score = torch.logaddexp(beams.blank, beams.token), frame.gather(1, beams.last)
    place = candidates.place.gather(1, beams.last)
    longer = nn.functional.pad(ended.unsqueeze(2) + candidates.scores.unsqueeze(1), (0, 1), value=_NOWHERE)
    # the same token again is a second one only behind a blank; the empty prefix has none
    second = torch.where((place < num_tokens) & (beams.last != blank_id), beams.blank + last_score, _NOWHERE)
    longer.scatter_(2, place.unsqueeze(2), second.unsqueeze(2))
    # of the prefixes in the beam, the parent of each, which can be lengthened to it
    has_parent, parent = (beams.prefix.unsqueeze(2) == beams.parent.unsqueeze(1)).to(torch.uint8).max(dim=1)
    has_parent = has_parent.bool()
    is_second = beams.last.gather(1, parent) == beams.last
    from_parent = torch.where(is_second, beams.blank.gather(1, parent), ended.gather(1, parent))
    token = torch.logaddexp(beams.token, torch.where(has_parent, from_parent, _NOWHERE)) + last_score
    twice = torch.where(has_parent, parent * (num_tokens + 1) + place, num_tokens)
    longer.view(batch, -1).scatter_(1, twice, _NOWHERE)
    return ended + frame[:, blank_id, None], token, longer


def _hypotheses(
    acoustic: Tensor,
    bonus: Tensor,
    state: Tensor | None,
    sources: list[Tensor],
    added: list[Tensor],
    scorer: SumOfScorers | None,
    n_best: int,
    name: str,
) -> list[list[Hypothesis]]:
    """The prefixes that are left, best first, read off backwards: where each came from and what it took on."""
    if scorer is not None:
        bonus = bonus + scorer.finish(state)
    total, place = (acoustic + bonus).sort(dim=1, descending=True)
    total, place = total[:, :n_best], place[:, :n_best]
    rows = np.arange(len(total))[:, None]
    slots, columns = place.cpu().numpy(), []
    if sources:
        all_sources, all_added = torch.stack(sources).cpu().numpy(), torch.stack(added).cpu().numpy()
        for source, token in zip(all_sources[::-1], all_added[::-1]):
            columns.append(token[rows, slots])
            slots = source[rows, slots]
    tokens = np.stack(columns[::-1], axis=2) if columns else np.empty((*total.shape, 0), dtype=np.int64)
    own = acoustic.gather(1, place).tolist()
    found = [
        [
            Hypothesis(sequence[sequence >= 0].tolist(), score, scores={name: part})
            for sequence, score, part in zip(*utterance)
            if score > _NOWHERE
        ]
        for utterance in zip(tokens, total.tolist(), own)
    ]
    if scorer is not None:
        flat = [hypothesis for utterance in found for hypothesis in utterance]
        for hypothesis, parts in zip(flat, scorer.parts([one.tokens for one in flat], acoustic.device)):
            hypothesis.scores.update(parts)
    return found

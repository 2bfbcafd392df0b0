"""When each token of a known transcription was said: the best path of CTC through it, for a whole batch at once.

Shapes: B utterances, T frames, V tokens, N tokens of a transcription, S = 2 N + 1 places: a blank around every token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from components.layers.masking import length_mask
from utils.errors import UserError

_NOWHERE = -float("inf")


@dataclass
class Alignment:
    """Tokens and their frames.

    Attributes:
        spans: int64 `[B, N, 2]`, the first frame of each token and the one behind its last; -1 where there is none.
        score: `[B]`, log-probability of the path; -inf where there is none.
        confidences: `[B, N]`, mean probability of each token in its frames; 0 where there is none.
        feasible: bool `[B]`, False where the frames are too few: a token needs one, and one more to part it from an
            equal one before it.
    """

    spans: Tensor
    score: Tensor
    confidences: Tensor
    feasible: Tensor

    def times(self, token_lens: Tensor, frame_seconds: float) -> list[list[tuple[float, float]] | None]:
        """Seconds from and to, of each token of each utterance; None for one that is not feasible."""
        spans, feasible = (self.spans.double() * frame_seconds).tolist(), self.feasible.tolist()
        return [
            [(begin, end) for begin, end in row[:count]] if is_there else None
            for row, count, is_there in zip(spans, token_lens.tolist(), feasible)
        ]


@torch.inference_mode()
def align(
    log_probs: Tensor, lens: Tensor, tokens: Tensor, token_lens: Tensor, blank_id: int = 0, strict: bool = False
) -> Alignment:
    """The most probable path of CTC through each transcription (Viterbi 1967; Graves et al. 2006, section 4.1).

    Args:
        log_probs: `[B, T, V]`, natural logarithms.
        lens: `[B]`, frames of each utterance.
        tokens: `[B, N]`; what is behind `token_lens` is not read.
        token_lens: `[B]`.
        blank_id: the blank.
        strict: raise where an utterance is not feasible.

    Returns:
        For each utterance the frames of its tokens.

    Raises:
        UserError: a transcription holds the blank; with `strict`, one does not fit into its frames: says which.
    """
    batch, num_frames, _ = log_probs.shape
    count = tokens.shape[1]
    known = length_mask(token_lens, count)
    tokens = torch.where(known, tokens, blank_id)
    if bool((known & (tokens == blank_id)).any()):
        raise UserError(f"align: a transcription holds the blank, token {blank_id}")
    labels = tokens.new_full((batch, 2 * count + 1), blank_id)
    labels[:, 1::2] = tokens
    last_place = 2 * token_lens
    frames = log_probs if log_probs.dtype == torch.float64 else log_probs.float()
    best, moves = _forward(frames, lens, labels)
    # it ends in the last token or in the blank behind it
    ends = torch.stack([best.gather(1, last_place[:, None])[:, 0], _last_token_score(best, last_place)], dim=1)
    score, in_token = ends.max(dim=1)
    feasible = score > _NOWHERE
    if strict and not bool(feasible.all()):
        item = int((~feasible).nonzero()[0])
        raise UserError(
            f"align: the {int(token_lens[item])} tokens of utterance {item} do not fit into {int(lens[item])} frames"
        )
    path = _backward(moves, lens, last_place - in_token)
    spans = _spans(path, count, num_frames)
    there = known & feasible.unsqueeze(1)
    confidences = _mean_probability(frames, path, tokens, spans)
    return Alignment(torch.where(there.unsqueeze(2), spans, -1), score, torch.where(there, confidences, 0.0), feasible)


def _last_token_score(best: Tensor, last_place: Tensor) -> Tensor:
    score = best.gather(1, (last_place - 1).clamp(min=0)[:, None])[:, 0]
    return torch.where(last_place > 0, score, _NOWHERE)


def _forward(frames: Tensor, lens: Tensor, labels: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Score of the best path to each place `[B, S]`, and by how many places it moved into each frame."""
    places = torch.arange(labels.shape[1], device=labels.device)
    # a blank may be left out between two tokens that differ
    skips = (places % 2 == 1) & (places >= 3) & (labels != labels.roll(2, dims=1))
    best = frames.new_full(labels.shape, _NOWHERE)
    best[:, 0] = 0.0  # before the first frame: it moves by 0 or 1, to the blank or to the token behind it
    moves = []
    for time, frame in enumerate(frames.unbind(1)):
        from_before = torch.nn.functional.pad(best, (2, 0), value=_NOWHERE)
        ways = torch.stack([best, from_before[:, 1:-1], torch.where(skips, from_before[:, :-2], _NOWHERE)])
        into, move = ways.max(dim=0)
        into = into + frame.gather(1, labels)
        best = torch.where((time < lens).unsqueeze(1), into, best)
        moves.append(move.to(torch.int8))
    return best, moves


def _backward(moves: list[Tensor], lens: Tensor, place: Tensor) -> Tensor:
    """The place of each frame on the path that ends in `place [B]`: `[B, T]`, -1 behind an utterance's end."""
    path = []
    for time in reversed(range(len(moves))):
        inside = time < lens
        path.append(torch.where(inside, place, -1))
        move = moves[time].gather(1, place.clamp(min=0)[:, None])[:, 0]
        place = (place - torch.where(inside, move, 0)).clamp(min=0)
    empty = place.new_zeros(len(place), 0)
    return torch.stack(path[::-1], dim=1) if path else empty


def _spans(path: Tensor, count: int, num_frames: int) -> Tensor:
    """First and last-but-one frames of tokens from the places of a path: `[B, N, 2]`."""
    batch = len(path)
    token = torch.where(path % 2 == 1, path // 2, count)  # the blanks, and -1, to a column that is cut off
    token = torch.where(path < 0, count, token)
    times = torch.arange(num_frames, device=path.device).expand(batch, -1)
    first = times.new_full((batch, count + 1), num_frames).scatter_reduce(1, token, times, "amin")
    last = times.new_full((batch, count + 1), -1).scatter_reduce(1, token, times, "amax")
    return torch.stack([first[:, :count], last[:, :count] + 1], dim=2)


def _mean_probability(frames: Tensor, path: Tensor, tokens: Tensor, spans: Tensor) -> Tensor:
    """Mean over its frames of each token's probability, `[B, N]`."""
    batch, count = tokens.shape
    if not count:
        return frames.new_zeros(batch, 0)
    token = torch.where((path % 2 == 1) & (path >= 0), path // 2, count)
    label = tokens.gather(1, token.clamp(max=count - 1))
    probs = frames.gather(2, label.unsqueeze(2))[:, :, 0].exp()
    sums = frames.new_zeros(batch, count + 1).scatter_add(1, token, probs)[:, :count]
    return sums / (spans[..., 1] - spans[..., 0]).clamp(min=1)


def pad_tokens(sequences: Sequence[Sequence[int]], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Sequences as `[B, N]`, -100 behind their ends, and their lengths `[B]`."""
    longest = max(map(len, sequences), default=0)
    rows = [[*sequence, *[-100] * (longest - len(sequence))] for sequence in sequences]
    tokens = torch.tensor(rows, dtype=torch.int64, device=device).view(len(sequences), longest)
    return tokens, torch.tensor([len(sequence) for sequence in sequences], dtype=torch.int64, device=device)

"""Searches through a transducer's lattice, all utterances of a batch at once.

Shapes: B batch, T encoder frames, J joint width, K beams, S symbols found, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from components.models.asr.types import Encoded, Hypothesis

_MIX = 6364136223846793005  # an odd multiplier for hashes of 64 bits (Knuth, MMIX)


class Joiner(Protocol):
    """What a search asks of a transducer; `components.models.asr.heads.TransducerHead` is one."""

    blank_id: int
    monotonic: bool  # at most one token in a frame

    def start(self, batch_size: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Before the first token: `[B, J]`, and a state of tensors `[B, ...]`."""

    def step(self, tokens: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The same behind one more token of each, `[B]`."""

    def log_probs(self, frames: Tensor, predictions: Tensor) -> Tensor:
        """`[..., J]` and `[..., J]` to `[..., V]`."""


@dataclass
class GreedyState:
    """Where a greedy search stands between two chunks.

    Attributes:
        prediction: `[B, J]`.
        predictor: the joiner's state.
        num_frames: `[B]`, frames behind it.
    """

    prediction: Tensor
    predictor: tuple[Tensor, ...]
    num_frames: Tensor


@dataclass
class Emissions:
    """What was found, in the order of time.

    Attributes:
        tokens: `[B, ..., S]`; valid where `mask` is True.
        frames: `[B, ..., S]`, at which frame.
        log_probs: `[B, ..., S]`, of each token there.
        mask: bool `[B, ..., S]`.
        scores: `[B, ...]`, log-probability of what was found.
    """

    tokens: Tensor
    frames: Tensor
    log_probs: Tensor
    mask: Tensor
    scores: Tensor


def transducer_greedy(
    joiner: Joiner,
    frames: Tensor,
    lens: Tensor,
    max_symbols: int = 10,
    window: int = 8,
    state: GreedyState | None = None,
) -> tuple[Emissions, GreedyState]:
    """The most probable symbol at each step; a blank leads to the next frame.

    Every utterance has a frame of its own at which it stands, and looks some frames ahead for its next token, so that a
    batch takes about as many steps as its longest text has tokens (label looping, Bataev et al. 2024, arXiv:2406.06220,
    in windows).

    Args:
        frames: `[B, T, J]`; those of a chunk, with `state` of the chunks before.
        lens: `[B]`.
        max_symbols: tokens of one frame, after which the next frame is taken without a blank; one in a monotonic
            transducer.
        window: frames looked at in a step; it does not change what is found.

    Returns:
        What was found in these frames (`frames` counted from the first chunk), and the state behind them.
    """
    batch, num_frames = frames.shape[:2]
    max_symbols = 1 if joiner.monotonic else max_symbols
    state = state or GreedyState(*joiner.start(batch), torch.zeros_like(lens))
    prediction, predictor = state.prediction, state.predictor
    ahead = torch.arange(min(window, max(num_frames, 1)), device=frames.device)
    at, said = torch.zeros_like(lens), torch.zeros_like(lens)  # the frame each stands at, tokens said there
    scores, found = frames.new_zeros(batch, dtype=torch.float32), []
    while bool((at < lens).any()):
        places = at.unsqueeze(1) + ahead
        inside = places < lens.unsqueeze(1)
        index = places.clamp(max=num_frames - 1).unsqueeze(-1).expand(-1, -1, frames.shape[-1])
        log_probs = joiner.log_probs(frames.gather(1, index), prediction.unsqueeze(1))
        best_log_probs, best = log_probs.max(-1)
        speaks = (best != joiner.blank_id) & inside
        emits = speaks.any(1)
        silent = torch.where(emits, speaks.int().argmax(1), inside.sum(1))  # frames passed over
        at, said = at + silent, said.masked_fill(silent > 0, 0)
        first = silent.clamp(max=len(ahead) - 1).unsqueeze(1)
        tokens, token_log_probs = best.gather(1, first).squeeze(1), best_log_probs.gather(1, first).squeeze(1)
        blanks = log_probs[..., joiner.blank_id].masked_fill(ahead >= silent.unsqueeze(1), 0.0)
        scores = scores + blanks.sum(1) + token_log_probs.masked_fill(~emits, 0.0)
        found.append((tokens, at + state.num_frames, token_log_probs, emits))
        said = said + emits
        at, said = at + (said >= max_symbols), said.masked_fill(said >= max_symbols, 0)
        prediction, predictor = _where(emits, joiner.step(tokens, predictor), (prediction, predictor))
    return _emissions(found, scores), GreedyState(prediction, predictor, state.num_frames + lens)


def transducer_beam(joiner: Joiner, frames: Tensor, lens: Tensor, beam_size: int = 8) -> Emissions:
    """The most probable texts when a frame has at most one token (Kang et al. 2022, arXiv:2211.00484).

    A text's score is the sum over its alignments: two ways to the same prefix are one beam, whose frames are those of
    the better way. With as many beams as there are prefixes, this is exact.

    Args:
        frames: `[B, T, J]`.
        lens: `[B]`.
        beam_size: K.

    Returns:
        `[B, K, S]`, best first; a beam that was never filled has the score -inf.
    """
    batch, num_frames = frames.shape[:2]
    rows = torch.arange(batch, device=frames.device).unsqueeze(1)
    beams = _Beams.empty(batch, beam_size, num_frames, frames.device)
    prediction, predictor = joiner.start(batch * beam_size)
    for number in range(num_frames):
        log_probs = joiner.log_probs(frames[:, number, None], prediction.view(batch, beam_size, -1))
        stay, extend, origins = _merge(beams, log_probs, joiner.blank_id)
        running = (number < lens).unsqueeze(1)
        stay = torch.where(running, stay, beams.scores)
        extend = extend.masked_fill(~running.unsqueeze(-1), -torch.inf)
        scores, picked = torch.cat([stay, extend.flatten(1)], dim=1).topk(beam_size)
        is_new, vocab_size = picked >= beam_size, log_probs.shape[-1]
        kept = picked.clamp(max=beam_size - 1)
        parents = torch.where(is_new, (picked - beam_size).div(vocab_size, rounding_mode="floor"), origins[rows, kept])
        parents = torch.where(running, parents, kept)
        longer = is_new | (parents != kept)
        tokens = torch.where(is_new, (picked - beam_size).remainder(vocab_size), beams.last[rows, kept])
        beams = beams.grow(rows, parents, tokens, longer, log_probs[rows, parents, tokens], number, scores)
        flat = (rows * beam_size + parents).flatten()
        before = prediction[flat], tuple(part[flat] for part in predictor)
        prediction, predictor = _where(longer.flatten(), joiner.step(tokens.flatten(), before[1]), before)
    mask = torch.arange(num_frames, device=frames.device) < beams.num_tokens.unsqueeze(-1)
    return Emissions(beams.tokens, beams.frames, beams.log_probs, mask, beams.scores)


@dataclass
class _Beams:
    """Prefixes, all `[B, K, ...]`: their symbols, a hash of them, how many, the last one, and log-probability."""

    tokens: Tensor
    frames: Tensor
    log_probs: Tensor
    hashes: Tensor
    num_tokens: Tensor
    last: Tensor
    scores: Tensor

    @classmethod
    def empty(cls, batch: int, beam_size: int, capacity: int, device: torch.device) -> _Beams:
        longs = torch.zeros(batch, beam_size, capacity, dtype=torch.long, device=device)
        one = torch.zeros(batch, beam_size, dtype=torch.long, device=device)
        scores = torch.full((batch, beam_size), -torch.inf, device=device)
        scores[:, 0] = 0.0
        return cls(longs, longs, longs.float(), one, one, one, scores)

    def grow(
        self,
        rows: Tensor,
        parents: Tensor,
        tokens: Tensor,
        longer: Tensor,
        log_probs: Tensor,
        frame: int,
        scores: Tensor,
    ) -> _Beams:
        """What is kept: beam k is what was `parents[b, k]`, with `tokens[b, k]` behind it where `longer`."""
        num_tokens = self.num_tokens[rows, parents]
        here = longer.unsqueeze(-1) & (
            torch.arange(self.tokens.shape[-1], device=tokens.device) == num_tokens.unsqueeze(-1)
        )
        hashes = self.hashes[rows, parents]
        return _Beams(
            torch.where(here, tokens.unsqueeze(-1), self.tokens[rows, parents]),
            self.frames[rows, parents].masked_fill(here, frame),
            torch.where(here, log_probs.unsqueeze(-1), self.log_probs[rows, parents]),
            torch.where(longer, hashes * _MIX + tokens + 1, hashes),
            num_tokens + longer,
            torch.where(longer, tokens, self.last[rows, parents]),
            scores,
        )


def _merge(beams: _Beams, log_probs: Tensor, blank_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scores of the beams `[B, K]` and of each longer prefix `[B, K, V]`; and the beams they came from `[B, K]`.

    The beams are different prefixes, so a longer one can only equal a beam whose own last token it adds; it then goes
    to that beam and not to a new one. Where it is the better way, the beam comes from it, and else from itself.
    """
    stay = beams.scores + log_probs[..., blank_id]
    extend = beams.scores.unsqueeze(-1) + log_probs
    extend[..., blank_id] = -torch.inf
    last = beams.last.unsqueeze(1).expand(-1, extend.shape[1], -1)  # [B, from K, to K]
    same = beams.hashes.unsqueeze(2) * _MIX + last + 1 == beams.hashes.unsqueeze(1)
    same &= beams.num_tokens.unsqueeze(2) + 1 == beams.num_tokens.unsqueeze(1)
    alive = beams.scores > -torch.inf
    same &= alive.unsqueeze(2) & alive.unsqueeze(1)
    arriving, origins = extend.gather(2, last).masked_fill(~same, -torch.inf).max(1)  # of at most one
    origins = torch.where(arriving > stay, origins, torch.arange(origins.shape[1], device=origins.device))
    gone = torch.zeros_like(extend).scatter_reduce_(2, last, same.to(extend.dtype), "amax")
    return torch.logaddexp(stay, arriving), extend.masked_fill(gone > 0, -torch.inf), origins


Prediction = tuple[Tensor, tuple[Tensor, ...]]


def _where(mask: Tensor, new: Prediction, old: Prediction) -> Prediction:
    def pick(first: Tensor, second: Tensor) -> Tensor:
        return torch.where(mask.view(-1, *[1] * (first.dim() - 1)), first, second)

    return pick(new[0], old[0]), tuple(pick(*pair) for pair in zip(new[1], old[1]))


def _emissions(found: list[tuple[Tensor, Tensor, Tensor, Tensor]], scores: Tensor) -> Emissions:
    if found:
        return Emissions(*(torch.stack(parts, dim=1) for parts in zip(*found)), scores)
    nothing = torch.zeros(len(scores), 0, dtype=torch.long, device=scores.device)
    return Emissions(nothing, nothing, nothing.float(), nothing.bool(), scores)


class TransducerGreedy:
    """The greedy transcription of every utterance; with a token's frame as its time, its probability as confidence.

    Args:
        max_symbols: tokens of one frame at most; one in a monotonic transducer.
    """

    needs = ("transducer",)

    def __init__(self, max_symbols: int = 10) -> None:
        self.max_symbols = max_symbols

    @torch.no_grad()
    def __call__(self, model: Any, encoded: Encoded) -> list[list[Hypothesis]]:
        head = model.heads["transducer"]
        found, _ = transducer_greedy(head, head.frames(encoded), encoded.lens, self.max_symbols)
        return [[text] for text in _hypotheses(found, model.frame_seconds)]

    def stream(self, model: Any) -> TransducerStream:
        """The same, chunk by chunk."""
        return TransducerStream(model, self.max_symbols)


class TransducerStream:
    """A greedy search that is given the encoder's frames as they come."""

    def __init__(self, model: Any, max_symbols: int = 10) -> None:
        self.model, self.max_symbols = model, max_symbols
        self._state: GreedyState | None = None

    @torch.no_grad()
    def push(self, encoded: Encoded) -> list[Hypothesis]:
        """What was said in the next frames of each utterance: tokens, and times from the beginning of the stream."""
        head = self.model.heads["transducer"]
        frames = head.frames(encoded)
        found, self._state = transducer_greedy(head, frames, encoded.lens, self.max_symbols, state=self._state)
        return _hypotheses(found, self.model.frame_seconds)


class TransducerBeam:
    """The best transcriptions of every utterance, with at most one token in a frame.

    A token's time is its frame on the best way to the text, its confidence its probability there.

    Args:
        beam_size: prefixes kept.
        num_best: transcriptions returned; None for all.
    """

    needs = ("transducer",)

    def __init__(self, beam_size: int = 8, num_best: int | None = None) -> None:
        self.beam_size, self.num_best = beam_size, num_best

    @torch.no_grad()
    def __call__(self, model: Any, encoded: Encoded) -> list[list[Hypothesis]]:
        head = model.heads["transducer"]
        found = transducer_beam(head, head.frames(encoded), encoded.lens, self.beam_size)
        parts = (found.tokens, found.frames, found.log_probs, found.mask, found.scores)
        flat = _hypotheses(Emissions(*(part.flatten(0, 1) for part in parts)), model.frame_seconds)
        of_each = [flat[row : row + self.beam_size] for row in range(0, len(flat), self.beam_size)]
        return [[text for text in texts if text.score > -torch.inf][: self.num_best] for texts in of_each]


def _hypotheses(found: Emissions, frame_seconds: float) -> list[Hypothesis]:
    """Rows `[B, S]` as hypotheses; all comes to the host at once."""
    columns = (found.mask, found.tokens, found.frames, found.log_probs.exp(), found.scores)
    texts = []
    for mask, tokens, frames, confidences, score in zip(*(column.tolist() for column in columns)):
        said = [place for place, is_said in enumerate(mask) if is_said]
        texts.append(
            Hypothesis(
                tokens=[tokens[place] for place in said],
                score=score,
                times=[(frames[place] * frame_seconds, (frames[place] + 1) * frame_seconds) for place in said],
                confidences=[confidences[place] for place in said],
                scores={"transducer": score},
            )
        )
    return texts

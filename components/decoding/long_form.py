"""Recordings that are too long to be heard at once: by chunks that overlap, or by the pauses in them.

Shapes: T samples, L encoder frames, D hidden.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from components.models.asr.types import Encoded, Hypothesis
from utils.errors import UserError

Decoder = Callable[[Any, Encoded], list[list[Hypothesis]]]

_SILENCE_DB = -100.0


@dataclass(frozen=True)
class Chunk:
    """A part of a recording, in samples.

    Attributes:
        begin, end: what is heard.
        own_begin, own_end: what of it is kept; the own parts of all chunks are the recording.
    """

    begin: int
    end: int
    own_begin: int
    own_end: int


@dataclass
class Segment:
    """What was said between two pauses: seconds from and to, and the hypotheses, with times in the recording."""

    begin: float
    end: float
    hypotheses: list[Hypothesis]


def plan_chunks(num_samples: int, chunk: int, context: int, frame: int) -> list[Chunk]:
    """Chunks that begin at whole frames, so that their frames are frames of the recording.

    Args:
        num_samples: of the recording.
        chunk: samples that each is responsible for.
        context: samples that it hears more on either side.
        frame: samples of one encoder frame.
    """
    chunk, context = max(chunk // frame, 1) * frame, math.ceil(context / frame) * frame
    own = range(0, max(num_samples, 1), chunk)
    return [
        Chunk(
            max(begin - context, 0), min(begin + chunk + context, num_samples), begin, min(begin + chunk, num_samples)
        )
        for begin in own
    ]


@torch.inference_mode()
def transcribe_long(
    model: Any,
    decoder: Decoder,
    waveform: Tensor,
    chunk_seconds: float = 20.0,
    context_seconds: float = 4.0,
    join: str = "frames",
    batch_size: int = 4,
) -> list[Hypothesis]:
    """The hypotheses of one recording, best first, with times in it.

    The encoder hears chunks. With `join="frames"` the frames that each is responsible for are put together and decoded
    as one utterance: exactly as the whole would be where `context_seconds` covers what a frame depends on. It is for
    heads that decode frame by frame (CTC, transducer). With `join="tokens"` each chunk is decoded by itself and the
    texts are put together where they overlap: at the border by time where the decoder knows times, else in the middle
    of the longest run of tokens that both have.

    Args:
        model: with `encode`, `heads`, `frame_seconds` and `frontend.sample_rate`.
        decoder: for its heads.
        waveform: `[T]`, at the model's rate.
        chunk_seconds: that each chunk is responsible for.
        context_seconds: that it hears more on either side.
        join: "frames" or "tokens".
        batch_size: chunks that are encoded at once.

    Raises:
        UserError: an unknown `join`, or a chunk has fewer frames than it is responsible for.
    """
    if join not in ("frames", "tokens"):
        raise UserError(f"join is {join!r}, it must be frames or tokens")
    if not len(waveform):
        return [Hypothesis([], 0.0)]
    rate = model.frontend.sample_rate
    frame = round(model.frame_seconds * rate)
    chunks = plan_chunks(len(waveform), round(chunk_seconds * rate), round(context_seconds * rate), frame)
    batches = [chunks[at : at + batch_size] for at in range(0, len(chunks), batch_size)]
    if join == "frames":
        parts = [
            part
            for batch in batches
            for part in _own_frames(_encode(model, waveform, batch), batch, frame, len(waveform))
        ]
        hidden = torch.cat([hidden for hidden, _ in parts]).unsqueeze(0)
        layers = {name: torch.cat([of[name] for _, of in parts]).unsqueeze(0) for name in parts[0][1]}
        lens = torch.tensor([hidden.shape[1]], device=hidden.device)
        return decoder(model, Encoded(hidden, lens, layers))[0]
    joined = None
    for batch in batches:
        for chunk, found in zip(batch, decoder(model, _encode(model, waveform, batch))):
            best = _later(found[0] if found else Hypothesis([], 0.0), chunk.begin / rate)
            share = 2 * context_seconds / (2 * context_seconds + chunk_seconds)
            joined = best if joined is None else join_hypotheses(joined, best, chunk.own_begin / rate, share)
    return [joined]


@torch.inference_mode()
def transcribe_segments(
    model: Any, decoder: Decoder, waveform: Tensor, regions: Sequence[tuple[float, float]], batch_size: int = 8
) -> list[Segment]:
    """Each region of a recording as an utterance of its own, those of like length together.

    Args:
        model, decoder, waveform: as of `transcribe_long`.
        regions: seconds from and to, as `speech_regions` gives them.
        batch_size: regions that are decoded at once.

    Returns:
        Segments in the order of the regions.
    """
    rate = model.frontend.sample_rate
    order = sorted(range(len(regions)), key=lambda index: regions[index][1] - regions[index][0])
    segments: dict[int, Segment] = {}
    for at in range(0, len(order), batch_size):
        chosen = order[at : at + batch_size]
        bounds = [(round(regions[index][0] * rate), round(regions[index][1] * rate)) for index in chosen]
        heard = [Chunk(begin, min(end, len(waveform)), begin, end) for begin, end in bounds]
        for index, found in zip(chosen, decoder(model, _encode(model, waveform, heard))):
            begin, end = regions[index]
            segments[index] = Segment(begin, end, [_later(one, begin) for one in found])
    return [segments[index] for index in range(len(regions))]


def _encode(model: Any, waveform: Tensor, chunks: Sequence[Chunk]) -> Encoded:
    longest = max(chunk.end - chunk.begin for chunk in chunks)
    padded = waveform.new_zeros(len(chunks), 1, longest)
    for row, chunk in zip(padded, chunks):
        row[0, : chunk.end - chunk.begin] = waveform[chunk.begin : chunk.end]
    lens = torch.tensor([chunk.end - chunk.begin for chunk in chunks], device=waveform.device)
    return model.encode({"waveform": padded, "audio_lens": lens})


def _own_frames(
    encoded: Encoded, chunks: Sequence[Chunk], frame: int, num_samples: int
) -> list[tuple[Tensor, dict[int, Tensor]]]:
    """Of each chunk the frames that it is responsible for, `[L, D]`; the last keeps all to its end."""
    parts = []
    for row, (chunk, count) in enumerate(zip(chunks, encoded.lens.tolist())):
        first, stop = (chunk.own_begin - chunk.begin) // frame, (chunk.own_end - chunk.begin) // frame
        if chunk.own_end == num_samples:
            stop = max(count, first)
        elif chunk.end < num_samples and stop > count:
            raise UserError(
                f"a chunk has {count} frames and is responsible for {stop}: make context_seconds longer, the encoder "
                "needs more to the right of a frame"
            )
        layers = {name: hidden[row, first : min(stop, count)] for name, hidden in encoded.layers.items()}
        parts.append((encoded.hidden[row, first : min(stop, count)], layers))
    return parts


def _later(hypothesis: Hypothesis, seconds: float) -> Hypothesis:
    if hypothesis.times is None:
        return hypothesis
    return replace(hypothesis, times=[(begin + seconds, end + seconds) for begin, end in hypothesis.times])


# ------------------------------------------------------------------------------------------------------------- joining


def join_hypotheses(left: Hypothesis, right: Hypothesis, border: float, overlap: float) -> Hypothesis:
    """Two hypotheses whose audio overlaps, as one.

    Args:
        left, right: with times in the recording, or without.
        border: seconds: where the left one's responsibility ends.
        overlap: the share of `right`'s audio that `left` has heard as well, from 0 to 1.

    Returns:
        Tokens, times and confidences of both; the scores are added, though both count the overlap.
    """
    if left.times is not None and right.times is not None:
        # the two say the same time in numbers that differ in their last digit
        keep, skip = (sum((begin + end) / 2 < border - 1e-6 for begin, end in one.times) for one in (left, right))
    else:
        shared = math.ceil(overlap * len(right.tokens))
        keep, skip = overlap_cut(left.tokens, right.tokens, shared)

    def both(name: str) -> list | None:
        first, second = getattr(left, name), getattr(right, name)
        return None if first is None or second is None else first[:keep] + second[skip:]

    scores = {name: left.scores.get(name, 0.0) + score for name, score in right.scores.items()}
    tokens = left.tokens[:keep] + right.tokens[skip:]
    return Hypothesis(tokens, left.score + right.score, both("times"), both("confidences"), scores)


def overlap_cut(left: Sequence[int], right: Sequence[int], shared: int) -> tuple[int, int]:
    """How many tokens of `left` to keep, and of `right`, which begins about where it ends, to skip.

    The cut is in the middle of the longest run that both have within twice the tokens that they should share, of equal
    ones that which is nearest to where it should be; without any, in the middle of what they should share.

    Args:
        left, right: tokens.
        shared: about how many of them are in both.
    """
    window = 2 * shared
    offset = max(len(left) - window, 0)
    best, cut, before = (0, 0), None, {}
    for at in range(offset, len(left)):
        here = {}
        for other, token in enumerate(right[:window]):
            if token == left[at]:
                size = here[other] = before.get(other - 1, 0) + 1
                rank = size, -abs(at - other - (len(left) - shared))
                if cut is None or rank > best:
                    best, cut = rank, (at + 1 - (size + 1) // 2, other + 1 - (size + 1) // 2)
        before = here
    return cut or (max(len(left) - shared // 2, 0), min(shared - shared // 2, len(right)))


# -------------------------------------------------------------------------------------------------------------- pauses


def speech_regions(
    waveform: Tensor,
    sample_rate: int,
    range_db: float = 40.0,
    margin_db: float = 6.0,
    min_pause: float = 0.3,
    min_speech: float = 0.1,
    padding: float = 0.1,
    max_seconds: float = 20.0,
) -> list[tuple[float, float]]:
    """Where something is said, by energy: louder than the background, and not much softer than the loudest.

    Args:
        waveform: `[T]`.
        sample_rate: Hz.
        range_db: how much softer than the loudest hundredth speech may be.
        margin_db: how much louder than the softest tenth it must be.
        min_pause: seconds; shorter pauses are part of the speech.
        min_speech: seconds; shorter bursts are none.
        padding: seconds that are added to both sides, at most half of the pause.
        max_seconds: longer regions are split where they are softest.

    Returns:
        Seconds from and to, in order; none overlap.
    """
    hop = max(round(0.01 * sample_rate), 1)
    duration = len(waveform) / sample_rate
    if len(waveform) < hop:
        return []
    power = waveform[: len(waveform) // hop * hop].double().view(-1, hop).square().mean(1)
    level = (10 * power.clamp(min=10 ** (_SILENCE_DB / 10)).log10()).cpu()
    threshold = max(float(level.quantile(0.99)) - range_db, float(level.quantile(0.1)) + margin_db, _SILENCE_DB + 1)
    runs = _runs(level >= threshold, round(min_pause * 100))
    regions: list[tuple[float, float]] = []
    runs = [run for run in runs if run[1] - run[0] >= round(min_speech * 100)]
    for number, (begin, end) in enumerate(runs):
        before = runs[number - 1][1] if number else 0
        after = runs[number + 1][0] if number + 1 < len(runs) else math.inf
        start = begin - min(padding * 100, (begin - before) / 2 if number else begin)
        stop = end + min(padding * 100, (after - end) / 2)
        for first, last in _split(level, start, stop, max_seconds * 100):
            regions.append((first * hop / sample_rate, min(last * hop / sample_rate, duration)))
    return regions


def _runs(active: Tensor, min_gap: int) -> list[tuple[int, int]]:
    """Runs of True, those together that are less than `min_gap` apart."""
    runs: list[tuple[int, int]] = []
    edges = torch.nn.functional.pad(active.int(), (1, 1)).diff()
    for begin, end in zip((edges == 1).nonzero()[:, 0].tolist(), (edges == -1).nonzero()[:, 0].tolist()):
        if runs and begin - runs[-1][1] < min_gap:
            runs[-1] = (runs[-1][0], end)
        else:
            runs.append((begin, end))
    return runs


def _split(level: Tensor, begin: float, end: float, longest: float) -> list[tuple[float, float]]:
    """Parts of at most `longest`, cut where it is softest in the second half of what a part may be."""
    parts = []
    while end - begin > longest:
        first, last = int(begin + longest / 2), max(int(begin + longest), int(begin + longest / 2) + 1)
        cut = first + int(level[first:last].argmin())
        parts.append((begin, float(cut)))
        begin = float(cut)
    return [*parts, (begin, end)]

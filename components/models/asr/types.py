"""What the parts of a speech recogniser hand to each other.  Shapes: B batch, T encoder frames, D hidden, N tokens."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Encoded:
    """What an encoder made of a batch.

    Attributes:
        hidden: `[B, T, D]`, zero beyond an utterance's own frames.
        lens: `[B]`, its frames.
        layers: layer's number -> `[B, T, D]`, of the inner layers that were asked for.
    """

    hidden: Tensor
    lens: Tensor
    layers: dict[int, Tensor] = field(default_factory=dict)


@dataclass
class HeadOutput:
    """What a head says of a batch whose tokens are known.

    Attributes:
        per_item: `[B]`, each utterance's loss, a sum over its tokens; zero where `usable` is false.
        usable: bool `[B]`, False for utterances that this head can not learn from (more tokens than frames hold, say).
        metrics: name -> (sum, count), for the log.
    """

    per_item: Tensor
    usable: Tensor
    metrics: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


@dataclass
class Hypothesis:
    """One transcription of an utterance.

    Attributes:
        tokens: ids, without blank, begin or end.
        score: its log-probability by the decoder that found it, with what was added to it.
        times: seconds from and to, of each token; None where the decoder does not know.
        confidences: from 0 to 1, of each token; None where the decoder does not know.
        scores: the parts of `score` by name: `ctc`, `attention`, `lm`, ...
    """

    tokens: list[int]
    score: float
    times: list[tuple[float, float]] | None = None
    confidences: list[float] | None = None
    scores: dict[str, float] = field(default_factory=dict)

"""Decoders of CTC heads: the best path, and the best prefixes with language models and hotwords.

Shapes: B utterances, T frames, V tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from components.decoding.alignment import align, pad_tokens
from components.decoding.beam import prefix_beam_search
from components.decoding.fusion import SumOfScorers, TokenInsertion, TokenLm, WordInsertion, WordLm
from components.decoding.hotwords import HotwordTrie
from components.decoding.ngram import KenLm, NgramLm
from components.decoding.spelling import Spelling
from components.layers.masking import length_mask
from components.models.asr.types import Encoded, Hypothesis
from utils.errors import UserError

if TYPE_CHECKING:
    from components.text.tokenizer import Tokenizer

_NOT_SAID = (2, 3)  # begin and end, which a CTC head has outputs for but no use


@torch.inference_mode()
def greedy(log_probs: Tensor, lens: Tensor, blank_id: int = 0, frame_seconds: float = 1.0) -> list[Hypothesis]:
    """The most probable token of every frame, runs of it as one, blanks left out.

    Args:
        log_probs: `[B, T, V]`, natural logarithms.
        lens: `[B]`, frames of each utterance.
        blank_id: the blank.
        frame_seconds: of one frame, for `times`.

    Returns:
        For each utterance its hypothesis: `score` is the log-probability of the path; a token's time is that of its
        frames, its confidence the mean of its probability in them.
    """
    batch, num_frames, _ = log_probs.shape
    inside = length_mask(lens, num_frames)
    best, path = log_probs.float().max(dim=2)
    path = torch.where(inside, path, blank_id)
    best = torch.where(inside, best, 0.0)
    changes = torch.nn.functional.pad(path[:, 1:] != path[:, :-1], (1, 0), value=True)[:, :num_frames]
    run = changes.long().cumsum(1)  # from 1
    spoken = path != blank_id
    rows = torch.arange(batch, device=path.device).unsqueeze(1) * (num_frames + 1)
    kept, first = torch.unique_consecutive((rows + run)[spoken], return_inverse=True)
    count = torch.zeros(len(kept), dtype=torch.int64, device=path.device).index_add(0, first, torch.ones_like(first))
    probs = best.new_zeros(len(kept)).index_add(0, first, best.exp()[spoken])
    starts = (spoken & changes).nonzero()
    begin = starts[:, 1]
    columns = (starts[:, 0], path[spoken & changes], begin, begin + count, probs / count)
    found = [Hypothesis([], score, [], [], {"ctc": score}) for score in best.sum(1).tolist()]
    for row, token, start, stop, sure in zip(*(column.tolist() for column in columns)):
        found[row].tokens.append(token)
        found[row].times.append((start * frame_seconds, stop * frame_seconds))
        found[row].confidences.append(sure)
    return found


class CtcGreedy:
    """The most probable token of every frame, with times and confidences.

    Args:
        blank_id: the blank.
        forbidden_ids: never said.
    """

    needs: ClassVar[tuple[str, ...]] = ("ctc",)

    def __init__(self, blank_id: int = 0, forbidden_ids: Sequence[int] = _NOT_SAID) -> None:
        self.blank_id, self.forbidden_ids = blank_id, list(forbidden_ids)

    def __call__(self, model: Any, encoded: Encoded) -> list[list[Hypothesis]]:
        """One hypothesis of each utterance."""
        log_probs = _without(model.heads["ctc"].log_probs(encoded), self.forbidden_ids)
        return [[one] for one in greedy(log_probs, encoded.lens, self.blank_id, model.frame_seconds)]


class CtcPrefixBeam:
    """The most probable transcriptions, with what language models and hotwords have to say.

    The score is `log p_ctc + token_lm_weight log p_token_lm + word_lm_weight log p_word_lm + insertion_bonus * tokens +
    word_bonus * words + hotwords`, natural logarithms all, and a hypothesis's `scores` are these parts.

    Args:
        beam_size: prefixes that are kept.
        tokens_per_frame: a prefix is lengthened by so many best tokens of a frame only; None: by all. With a language
            model 20 to 40 lose nothing and save time.
        n_best: hypotheses to give back of each utterance; None: all that are kept.
        timed: how many of them get times and confidences, by the best path through them.
        tokenizer: spells words; needed by what follows but `insertion_bonus`.
        token_lm: a language model whose words are the tokenizer's symbols, a space being `▁`; or its ARPA file.
        token_lm_weight: its weight.
        word_lm: a language model over words; or its ARPA file.
        word_lm_weight: its weight.
        unknown_word: added for every word that `word_lm` does not know.
        insertion_bonus: for every token.
        word_bonus: for every word.
        hotwords: words or phrases to expect, a list or each with a weight of its own; or a file with one to a line.
        hotword_weight: for every token of a hotword, where it has no weight of its own.
        blank_id: the blank.
        forbidden_ids: never said.

    Raises:
        UserError: a tokenizer is needed and there is none, a file can not be read, or hotwords can not be spelled.
    """

    needs: ClassVar[tuple[str, ...]] = ("ctc",)

    def __init__(
        self,
        beam_size: int = 10,
        tokens_per_frame: int | None = None,
        n_best: int | None = None,
        timed: int = 1,
        tokenizer: Tokenizer | None = None,
        token_lm: NgramLm | KenLm | str | None = None,
        token_lm_weight: float = 0.3,
        word_lm: NgramLm | KenLm | str | None = None,
        word_lm_weight: float = 0.5,
        unknown_word: float = -10.0,
        insertion_bonus: float = 0.0,
        word_bonus: float = 0.0,
        hotwords: Sequence[str] | Mapping[str, float] | str | None = None,
        hotword_weight: float = 1.0,
        blank_id: int = 0,
        forbidden_ids: Sequence[int] = _NOT_SAID,
    ) -> None:
        if beam_size < 1:
            raise UserError(f"decoder.beam_size is {beam_size}, it must be at least 1")
        self.beam_size, self.tokens_per_frame, self.n_best, self.timed = beam_size, tokens_per_frame, n_best, timed
        self.blank_id, self.forbidden_ids = blank_id, list(forbidden_ids)
        wants = {"token_lm": token_lm, "word_lm": word_lm, "word_bonus": word_bonus, "hotwords": hotwords}
        if tokenizer is None and (named := next((name for name, value in wants.items() if value), None)):
            raise UserError(f"decoder.{named} needs decoder.tokenizer, which spells the words")
        scorers: list[Any] = [TokenInsertion(insertion_bonus)] if insertion_bonus else []
        if tokenizer is not None:
            spelling = Spelling.of(tokenizer)
            if word_bonus:
                scorers.append(WordInsertion(word_bonus, spelling))
            if token_lm:
                scorers.append(TokenLm(_language_model(token_lm), tokenizer.tokens, token_lm_weight))
            if word_lm:
                scorers.append(WordLm(_language_model(word_lm), spelling, word_lm_weight, unknown_word))
            if hotwords:
                words = _listed(hotwords) if isinstance(hotwords, str | Path) else hotwords
                scorers.append(HotwordTrie(words, tokenizer, hotword_weight))
        self.scorer = SumOfScorers(scorers) if scorers else None

    def __call__(self, model: Any, encoded: Encoded) -> list[list[Hypothesis]]:
        """The best hypotheses of each utterance, best first."""
        log_probs = _without(model.heads["ctc"].log_probs(encoded), self.forbidden_ids)
        found = prefix_beam_search(
            log_probs, encoded.lens, self.beam_size, self.tokens_per_frame, self.scorer, self.n_best, self.blank_id
        )
        add_times(found, log_probs, encoded.lens, model.frame_seconds, self.timed, self.blank_id)
        return found


def add_times(
    found: Sequence[Sequence[Hypothesis]],
    log_probs: Tensor,
    lens: Tensor,
    frame_seconds: float,
    timed: int = 1,
    blank_id: int = 0,
) -> None:
    """Give the first `timed` hypotheses of each utterance times and confidences, by the best path through each.

    Args:
        found: hypotheses of each utterance, of whichever decoder; changed in place. One that CTC can not align (too
            few frames for its tokens) keeps what it has.
        log_probs: `[B, T, V]` of a CTC head over the same frames.
        lens: `[B]`.
        frame_seconds: of one frame.
        timed: hypotheses of each utterance.
        blank_id: the blank.
    """
    chosen = [(row, one) for row, utterance in enumerate(found) for one in utterance[:timed]]
    if not chosen:
        return
    rows = torch.tensor([row for row, _ in chosen], device=log_probs.device)
    tokens, token_lens = pad_tokens([one.tokens for _, one in chosen], log_probs.device)
    alignment = align(log_probs[rows], lens[rows], tokens, token_lens, blank_id)
    confidences = alignment.confidences.tolist()
    for (_, one), times, sure in zip(chosen, alignment.times(token_lens, frame_seconds), confidences):
        if times is not None:
            one.times, one.confidences = times, sure[: len(times)]


def _without(log_probs: Tensor, forbidden_ids: Sequence[int]) -> Tensor:
    """The same with tokens made impossible."""
    if not forbidden_ids:
        return log_probs
    return log_probs.index_fill(2, torch.tensor(forbidden_ids, device=log_probs.device), -float("inf"))


def _language_model(lm: NgramLm | KenLm | str) -> NgramLm | KenLm:
    return NgramLm(lm) if isinstance(lm, str | Path) else lm


def _listed(path: str | Path) -> list[str]:
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"decoder.hotwords: can not read {path}: {error}") from None
    return [line.strip() for line in lines if line.strip()]

"""What a beam search adds to the acoustic score of a prefix, for a whole batch of prefixes at once.

Shapes: B utterances, K prefixes of each, P candidate tokens, S integers of state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from components.decoding.ngram import KenLm, NgramLm
from components.decoding.spelling import Spelling
from utils.errors import UserError

_ROWS_AT_ONCE = 2**24  # scores of a language model that are computed ahead, for all of its states
SPACE = "▁"  # of a tokenizer, in a language model over its tokens: there a word holds no blank


class PrefixScorer(Protocol):
    """A log-score that is a function of the prefix alone, found token by token.

    The score of a whole transcription is the sum of what `extend` said of each of its tokens, of the adjustments, and
    of `finish`. What `extend` leaves open (whether a word exists, before it is complete) an adjustment may settle.
    """

    name: str

    def start(self, batch: int, device: torch.device) -> Tensor:
        """The state of the empty prefix, int64 `[B, 1, S]`."""

    def extend(self, state: Tensor, candidates: Tensor) -> Tensor:
        """What each candidate `[B, P]` would add to each prefix `[B, K, S]`: `[B, K, P]` or what broadcasts to it."""

    def advance(self, state: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """States `[B, K, S]` behind `tokens [B, K]`, -1 where none is added; and adjustments `[B, K]`."""

    def finish(self, state: Tensor) -> Tensor:
        """What the end of the utterance adds to each prefix, `[B, K]`."""


class SumOfScorers:
    """Several scorers as one.

    Args:
        scorers: at least one; their `name`s are different.
    """

    name = "sum"

    def __init__(self, scorers: Sequence[PrefixScorer]) -> None:
        self.scorers = list(scorers)
        self._widths = [scorer.start(1, torch.device("cpu")).shape[2] for scorer in self.scorers]

    def start(self, batch: int, device: torch.device) -> Tensor:
        return torch.cat([scorer.start(batch, device) for scorer in self.scorers], dim=2)

    def extend(self, state: Tensor, candidates: Tensor) -> Tensor:
        states = state.split(self._widths, dim=2)
        return sum(scorer.extend(part, candidates) for scorer, part in zip(self.scorers, states))

    def advance(self, state: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        states = state.split(self._widths, dim=2)
        advanced = [scorer.advance(part, tokens) for scorer, part in zip(self.scorers, states)]
        return torch.cat([part for part, _ in advanced], dim=2), sum(adjustment for _, adjustment in advanced)

    def finish(self, state: Tensor) -> Tensor:
        return sum(scorer.finish(part) for scorer, part in zip(self.scorers, state.split(self._widths, dim=2)))

    def parts(self, sequences: Sequence[Sequence[int]], device: torch.device) -> list[dict[str, float]]:
        """The score of each sequence by each scorer's name."""
        scores = {scorer.name: score_sequences(scorer, sequences, device).tolist() for scorer in self.scorers}
        return [dict(zip(scores, values)) for values in zip(*scores.values())]


def score_sequences(scorer: PrefixScorer, sequences: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """What a scorer says of whole transcriptions, all at once: `[M]`."""
    longest = max((len(sequence) for sequence in sequences), default=0)
    tokens = torch.tensor([[*sequence, *[-1] * (longest - len(sequence))] for sequence in sequences], device=device)
    state = scorer.start(len(sequences), device)
    total = torch.zeros(len(sequences), 1, device=device)
    for token in tokens.view(len(sequences), longest, 1).unbind(1):
        gain = scorer.extend(state, token.clamp(min=0)).expand(len(sequences), 1, 1)[:, :, 0]
        state, adjustment = scorer.advance(state, token)
        total = total + torch.where(token < 0, 0.0, gain) + adjustment
    return (total + scorer.finish(state))[:, 0]


class TokenInsertion:
    """A bonus for every token, against transcriptions that are too short.

    Args:
        bonus: natural log units; below 0 it is a penalty.
    """

    name = "insertion"

    def __init__(self, bonus: float) -> None:
        self.bonus = bonus

    def start(self, batch: int, device: torch.device) -> Tensor:
        return torch.zeros(batch, 1, 0, dtype=torch.int64, device=device)

    def extend(self, state: Tensor, candidates: Tensor) -> Tensor:
        return torch.full((1, 1, 1), self.bonus, device=state.device)

    def advance(self, state: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        return state, torch.zeros(tokens.shape, device=state.device)

    def finish(self, state: Tensor) -> Tensor:
        return torch.zeros(state.shape[:2], device=state.device)


class WordInsertion:
    """A bonus for every word, given when it begins.

    Args:
        bonus: natural log units; below 0 it is a penalty.
        spelling: where the tokenizer's words begin.
    """

    name = "word_insertion"

    def __init__(self, bonus: float, spelling: Spelling) -> None:
        self.bonus = bonus
        self._opens = torch.tensor(spelling.opens)
        self._has_letters = torch.tensor([bool(letters) for letters in spelling.letters])

    def start(self, batch: int, device: torch.device) -> Tensor:
        self._opens, self._has_letters = self._opens.to(device), self._has_letters.to(device)
        return torch.zeros(batch, 1, 1, dtype=torch.int64, device=device)  # 1 inside of a word

    def extend(self, state: Tensor, candidates: Tensor) -> Tensor:
        has_letters, opens = self._has_letters[candidates], self._opens[candidates]
        begins = has_letters.unsqueeze(1) & (opens.unsqueeze(1) | (state == 0))
        return self.bonus * begins

    def advance(self, state: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        inside = self._has_letters[tokens.clamp(min=0)].long().unsqueeze(2)
        return torch.where(tokens.unsqueeze(2) < 0, state, inside), torch.zeros(tokens.shape, device=state.device)

    def finish(self, state: Tensor) -> Tensor:
        return torch.zeros(state.shape[:2], device=state.device)


class TokenLm:
    """Shallow fusion with a language model whose words are the tokenizer's symbols.

    Args:
        lm: the model; a symbol that it does not know counts as its unknown word.
        symbols: the symbol of every token id; blanks in them are written `▁` in the model.
        weight: what its natural log-probabilities are multiplied by.
    """

    name = "token_lm"

    def __init__(self, lm: NgramLm | KenLm, symbols: Sequence[str], weight: float) -> None:
        self.lm, self.weight = lm, weight
        self._words = torch.tensor([lm.word_id(symbol.replace(" ", SPACE)) for symbol in symbols])
        self._rows = torch.zeros(0, len(symbols))
        self._row_of = torch.zeros(0, dtype=torch.int64)

    def start(self, batch: int, device: torch.device) -> Tensor:
        if device != self._row_of.device or not len(self._row_of):
            self.lm.to(device)
            self._words = self._words.to(device)
            self._forget(device)
            if 0 < self.lm.num_states * len(self._words) <= _ROWS_AT_ONCE:
                self._remember(torch.arange(self.lm.num_states, device=device))
        return torch.full((batch, 1, 1), self.lm.start_state, device=device)

    def extend(self, state: Tensor, candidates: Tensor) -> Tensor:
        self._fill_rows(state[:, :, 0])
        rows = self._row_of[state[:, :, 0]]
        return self._rows.view(-1)[(rows * len(self._words)).unsqueeze(2) + candidates.unsqueeze(1)]

    def advance(self, state: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        state = state[:, :, 0]
        _, following = self.lm.step(state, self._words[tokens.clamp(min=0)])
        return torch.where(tokens < 0, state, following).unsqueeze(2), torch.zeros(tokens.shape, device=state.device)

    def finish(self, state: Tensor) -> Tensor:
        return self.weight * self.lm.end(state[:, :, 0])

    def _fill_rows(self, states: Tensor) -> None:
        """See to it that the rows of states are there."""
        if len(self._rows) == self.lm.num_states:
            return
        if self.lm.num_states > len(self._row_of):  # a model that finds its states as it goes
            more = self.lm.num_states - len(self._row_of)
            self._row_of = torch.cat([self._row_of, self._row_of.new_full((more,), -1)])
        missing = states[self._row_of[states] < 0].unique()
        if len(missing):
            if (len(self._rows) + len(missing)) * len(self._words) > 4 * _ROWS_AT_ONCE:
                self._forget(states.device)
                missing = states.unique()
            self._remember(missing)

    def _remember(self, states: Tensor) -> None:
        self._row_of[states] = torch.arange(len(self._rows), len(self._rows) + len(states), device=states.device)
        scores = [self.lm.scores(part)[:, self._words] for part in states.split(1024)]
        self._rows = torch.cat([self._rows, self.weight * torch.cat(scores)])

    def _forget(self, device: torch.device) -> None:
        self._rows = torch.zeros(0, len(self._words), device=device)
        self._row_of = torch.full((self.lm.num_states,), -1, device=device)


def _as_score(bits: Tensor) -> Tensor:
    """The float32 that a state carries as the bits of a float64."""
    return bits.contiguous().view(torch.float64).float()


class WordLm:
    """Shallow fusion with a language model over words, each scored when it is complete.

    Args:
        lm: the model.
        spelling: where the tokenizer's words begin and how they are spelled.
        weight: what its natural log-probabilities are multiplied by.
        unknown: added for a word that the model does not know, as soon as no word of it begins like that.

    Raises:
        UserError: none of the model's words can be spelled, as where one is in capitals and the other is not.
    """

    name = "word_lm"

    def __init__(self, lm: NgramLm | KenLm, spelling: Spelling, weight: float, unknown: float = -10.0) -> None:
        self.lm, self.weight, self.unknown = lm, weight, unknown
        self._opens = torch.tensor(spelling.opens)
        self._build_trie(spelling)

    def _build_trie(self, spelling: Spelling) -> None:
        """Nodes of all beginnings of words: 0 is the empty one, 1 is that of words that do not exist."""
        edges: dict[int, int] = {}  # node and letter -> node
        word_of = [-1, -1]
        known, is_spelled = set(b"".join(spelling.letters)), False
        for index, word in enumerate(self.lm.words):
            if index in self.lm.special_ids:
                continue
            node, letters = 0, word.encode()
            for letter in letters:
                node = edges.setdefault(node << 8 | letter, len(word_of))
                if node == len(word_of):
                    word_of.append(-1)
            word_of[node] = index
            is_spelled = is_spelled or known.issuperset(letters)
        if not is_spelled:
            raise UserError(
                "the tokenizer's symbols spell no word of the language model: are its words of another letter case?"
            )
        keys = sorted(edges)
        self._edge_keys = torch.tensor(keys)
        self._edge_nodes = torch.tensor([edges[key] for key in keys])
        self._word_of = torch.tensor(word_of)
        longest = max(map(len, spelling.letters))
        self._letters = torch.tensor([[*letters, *[-1] * (longest - len(letters))] for letters in spelling.letters])

    def start(self, batch: int, device: torch.device) -> Tensor:
        if device != self._opens.device:
            for name in ("_opens", "_edge_keys", "_edge_nodes", "_word_of", "_letters"):
                setattr(self, name, getattr(self, name).to(device))
        self.lm.to(device)
        history = torch.full((batch, 1), self.lm.start_state, device=device)
        return self._state(history, torch.zeros_like(history))

    def extend(self, state: Tensor, candidates: Tensor) -> Tensor:
        return _as_score(state[:, :, 3]).unsqueeze(2) * self._opens[candidates].unsqueeze(1)

    def advance(self, state: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        added, token = tokens >= 0, tokens.clamp(min=0)
        history, was, completed, _ = state.unbind(2)
        opens = added & self._opens[token]
        history, before = torch.where(opens, completed, history), torch.where(opens, 0, was)
        node, letters = before, torch.where(added.unsqueeze(2), self._letters[token], -1)
        for letter in letters.unbind(2):
            node = torch.where(letter >= 0, self._follow(node, letter), node)
        died = (node == 1) & (before != 1)
        return self._state(history, node), self.unknown * died

    def finish(self, state: Tensor) -> Tensor:
        return _as_score(state[:, :, 3]) + self.weight * self.lm.end(state[:, :, 2])

    def _state(self, history: Tensor, node: Tensor) -> Tensor:
        """The model's history, the word under way, and, if that ended here, the history then and the word's score."""
        word = self._word_of[node]
        is_word, is_known = node != 0, word >= 0
        score, following = self.lm.step(history, torch.where(is_known, word, self.lm.unknown_id))
        # a beginning that can not go on was charged when it came up
        unknown = self.unknown * (~is_known & (node > 1))
        score = (self.weight * score + unknown) * is_word
        bits = score.double().view(torch.int64)
        return torch.stack([history, node, torch.where(is_word, following, history), bits], dim=2)

    def _follow(self, node: Tensor, letter: Tensor) -> Tensor:
        keys = (node << 8) + letter
        position = torch.searchsorted(self._edge_keys, keys).clamp(max=len(self._edge_keys) - 1)
        return torch.where(self._edge_keys[position] == keys, self._edge_nodes[position], 1)

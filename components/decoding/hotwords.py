"""Words that a recogniser is told to expect: names, terms, places.

The automaton is that of Aho and Corasick (1975, "Efficient string matching: an aid to bibliographic search") over the
letters of whole words, worked out for whole tokens; that a beginning earns its share at once and loses it when the
word goes on otherwise is as in Zhao et al. (2019, "Shallow-fusion end-to-end contextual biasing", section 3).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from components.decoding.spelling import Spelling
from utils.errors import UserError

if TYPE_CHECKING:
    from components.text.tokenizer import Tokenizer

_MOST_CELLS = 2**28
_SPACE = ord(" ")


class HotwordTrie:
    """A `PrefixScorer`: each occurrence of a hotword, as whole words, adds `weight` times its number of tokens.

    Occurrences that overlap count each. Where a tokenizer does not part words, as for Mandarin or phones, a hotword
    is a run of tokens.

    Args:
        hotwords: words or phrases; or each with a weight of its own.
        tokenizer: spells them.
        weight: natural log units per token, as `tokenizer.encode` spells the hotword, spaces not counted.

    Raises:
        UserError: one is empty or has symbols that the tokenizer lacks, a weight is not above 0, there are too many.
    """

    name = "hotwords"

    def __init__(
        self, hotwords: Sequence[str] | Mapping[str, float], tokenizer: Tokenizer, weight: float = 1.0
    ) -> None:
        weights = dict(hotwords) if isinstance(hotwords, Mapping) else dict.fromkeys(hotwords, weight)
        spelling = Spelling.of(tokenizer)
        patterns: dict[bytes, float] = {}
        for word, its_weight in weights.items():
            letters, reward = _pattern(word, its_weight, tokenizer, spelling)
            patterns[letters] = max(reward, patterns.get(letters, 0.0))
        automaton = _Automaton(patterns)
        if len(automaton.next) * len(spelling.letters) > _MOST_CELLS:
            raise UserError(
                f"hotwords: {len(weights)} of them are too many for a vocabulary of {len(spelling.letters)} tokens"
            )
        following, paid = automaton.read_tokens(spelling)
        credit = torch.tensor(automaton.credit)
        self._num_tokens = len(spelling.letters)
        self._next = following.view(-1)
        self._gain = (paid + credit[following] - credit.unsqueeze(1)).view(-1)
        space = torch.tensor([row[_SPACE] for row in automaton.next])
        self._end = torch.tensor(automaton.paid)[space] * (space != torch.arange(len(space))) - credit
        self._start = automaton.start
        self._end = self._end + credit[self._start]  # what the empty prefix was credited with is owed from the start

    def start(self, batch: int, device: torch.device) -> Tensor:
        if device != self._next.device:
            self._next, self._gain, self._end = (table.to(device) for table in (self._next, self._gain, self._end))
        return torch.full((batch, 1, 1), self._start, device=device)

    def extend(self, state: Tensor, candidates: Tensor) -> Tensor:
        return self._gain[state * self._num_tokens + candidates.unsqueeze(1)]

    def advance(self, state: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        tokens = tokens.unsqueeze(2)
        following = self._next[state * self._num_tokens + tokens.clamp(min=0)].long()
        return torch.where(tokens < 0, state, following), torch.zeros(tokens.shape[:2], device=state.device)

    def finish(self, state: Tensor) -> Tensor:
        return self._end[state[:, :, 0]]


def _pattern(word: str, weight: float, tokenizer: Tokenizer, spelling: Spelling) -> tuple[bytes, float]:
    """A hotword's letters between spaces, and what an occurrence earns."""
    if not weight > 0:
        raise UserError(f"hotwords: the weight of {word!r} is {weight}, it must be above 0")
    tokens = tokenizer.encode(word)
    if tokenizer.unk_id in tokens:
        raise UserError(f"hotwords: {word!r} has symbols that the tokenizer lacks")
    letters = b" "
    for token in tokens:
        letters += b" " * (spelling.opens[token] and letters[-1] != _SPACE) + spelling.letters[token]
    letters = letters.rstrip() + b" "
    if not letters.strip():
        raise UserError(f"hotwords: {word!r} has no letters")
    return letters, weight * sum(bool(spelling.letters[token]) for token in tokens)


class _Automaton:
    """States over letters.

    Attributes:
        next: for each state, letter -> state.
        paid: earned on coming to each state.
        credit: earned for the time being, in each state.
        start: the state behind a space.
    """

    def __init__(self, patterns: Mapping[bytes, float]) -> None:
        self.next: list[list[int]] = [[0] * 256]
        self.paid, self.credit = [0.0], [0.0]
        edges: list[dict[int, int]] = [{}]
        for letters, reward in patterns.items():
            node = 0
            for depth, letter in enumerate(letters, start=1):
                if letter not in edges[node]:
                    edges[node][letter] = len(edges)
                    edges.append({})
                    self.paid.append(0.0)
                    self.credit.append(0.0)
                node = edges[node][letter]
                if depth < len(letters):
                    self.credit[node] = max(self.credit[node], reward * depth / len(letters))
            self.paid[node] = reward
        self._fail(edges)
        self.start = self.next[0][_SPACE]

    def _fail(self, edges: list[dict[int, int]]) -> None:
        """Breadth first: a state without an edge for a letter goes where its longest proper suffix would."""
        self.next = [[] for _ in edges]
        shorter = [0] * len(edges)
        queue: deque[tuple[int, int]] = deque([(0, 0)])
        while queue:
            node, letter_before = queue.popleft()
            fallback = self.next[shorter[node]] if node else [0] * 256
            self.next[node] = list(fallback)
            if node:
                self.paid[node] += self.paid[shorter[node]]
                self.credit[node] = max(self.credit[node], self.credit[shorter[node]])
            for letter, child in edges[node].items():
                shorter[child] = fallback[letter] if node else 0
                self.next[node][letter] = child
                queue.append((child, letter))
            if letter_before == _SPACE:
                self.next[node][_SPACE] = node  # several spaces are one

    def read_tokens(self, spelling: Spelling) -> tuple[Tensor, Tensor]:
        """For each state and token the state behind it (int32) and what was earned on the way, `[states, tokens]`."""
        table = torch.tensor(self.next, dtype=torch.int32)
        paid = torch.tensor(self.paid)
        longest = max(map(len, spelling.letters)) + 1
        written = [b" " * opens + letters for opens, letters in zip(spelling.opens, spelling.letters)]
        letters = torch.tensor([[*letters, *[-1] * (longest - len(letters))] for letters in written])
        state = torch.arange(len(self.next), dtype=torch.int32).unsqueeze(1).repeat(1, len(written))
        earned = torch.zeros(state.shape)
        for column in letters.T:
            following = torch.where(column < 0, state, table[state.long(), column.clamp(min=0)])
            earned += paid[following.long()] * (following != state)
            state = following
        return state, earned

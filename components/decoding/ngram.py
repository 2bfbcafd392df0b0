"""n-gram language models with back-off, for whole batches of histories at once.

The model of an ARPA file is an automaton (Mohri, Pereira and Riley 2002, "Weighted finite-state transducers in speech
recognition", section 2.3): a state is a history that has n-grams of its own, an arc is an n-gram, and a state without
an arc for a word hands on, at the price of its back-off weight, to the state of the history less its oldest word.
"""

from __future__ import annotations

import gzip
import math
import zlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.errors import UserError
from utils.imports import require

_LN_10 = math.log(10.0)
_NEVER = -100.0  # log10 of an unknown word that the file does not give, as KenLM has it
_TABLES = ("_keys", "_log_probs", "_next", "_chain", "_weights", "_first_arc")


@dataclass
class _Grams:
    """The n-grams of one order: `words [M, n]`, and log10 of probability and back-off, `[M]`."""

    words: Tensor
    log_probs: Tensor
    backoffs: Tensor


class NgramLm:
    """A back-off model from an ARPA file; scores are natural logarithms.

    Args:
        path: the file, plain or gzipped.

    Attributes:
        words: of the vocabulary, in the order of their ids; `<unk>` is added where the file lacks it.
        order: n.
        num_states: histories; `start_state` is that of a sentence's beginning.
        special_ids: of `<s>`, `</s>` and `<unk>`.

    Raises:
        UserError: the file can not be read or is no ARPA file; says the line.
    """

    def __init__(self, path: str | Path) -> None:
        self.words, grams = _read_arpa(Path(path).expanduser())
        self.order = len(grams)
        self._ids = {word: index for index, word in enumerate(self.words)}
        self.unknown_id = self._ids["<unk>"]
        self._end_id = self._ids.get("</s>")
        self.special_ids = {self._ids[word] for word in ("<s>", "</s>", "<unk>") if word in self._ids}
        self._build(grams, Path(path))
        self.start_state = 1 + self._ids["<s>"] if "<s>" in self._ids and self.order > 1 else 0

    def _build(self, grams: Sequence[_Grams], path: Path) -> None:
        """States in the order of their arcs: state `i + 1` is the history that arc `i` leads to, 0 the empty one."""
        size, order = len(self.words), len(grams)
        self._keys = torch.zeros(0, dtype=torch.int64)
        self._log_probs, self._next = torch.zeros(0), torch.zeros(0, dtype=torch.int64)
        self._chain = torch.zeros(1, order, dtype=torch.int32)
        self._weights = torch.zeros(1, order)
        for level in grams:
            num_words = level.words.shape[1]
            keys, rank = (self._histories(level, path) * size + level.words[:, -1]).sort()
            if bool((keys[1:] == keys[:-1]).any()):
                raise UserError(f"{path}: has an n-gram of order {num_words} twice")
            shorter = torch.zeros_like(keys)
            if num_words > 1:
                _, shorter = self.step(self._chain[keys // size, 1], keys % size)
            number = len(self._keys) + 1 + torch.arange(len(keys))
            self._next = torch.cat([self._next, number if num_words < order else shorter])
            self._keys = torch.cat([self._keys, keys])
            self._log_probs = torch.cat([self._log_probs, level.log_probs[rank] * _LN_10])
            if num_words < order:
                chain = torch.cat([number.int().unsqueeze(1), self._chain[shorter, :-1]], dim=1)
                backoff = level.backoffs[rank].unsqueeze(1) * _LN_10
                weights = torch.cat([torch.zeros_like(backoff), backoff + self._weights[shorter, :-1]], dim=1)
                self._chain, self._weights = torch.cat([self._chain, chain]), torch.cat([self._weights, weights])
        self.num_states = len(self._chain)
        self._first_arc = torch.searchsorted(self._keys, torch.arange(self.num_states + 1) * size)

    def _histories(self, level: _Grams, path: Path) -> Tensor:
        """The state of each n-gram without its last word."""
        history = torch.zeros(len(level.words), dtype=torch.int64)
        for column in level.words.T[:-1]:
            arc, found = self._find(history, column)
            if not bool(found.all()):
                words = " ".join(self.words[index] for index in level.words[int((~found).nonzero()[0])].tolist())
                raise UserError(f"{path}: has the n-gram '{words}' but not the shorter one it goes on from")
            history = self._next[arc]
        return history

    def to(self, device: torch.device | str) -> NgramLm:
        """Move the automaton."""
        if torch.device(device) != self._keys.device:
            for name in _TABLES:
                setattr(self, name, getattr(self, name).to(device))
        return self

    def word_id(self, word: str) -> int:
        """A word's id; that of `<unk>` if the model does not know it."""
        return self._ids.get(word, self.unknown_id)

    def _find(self, states: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        keys = states * len(self.words) + words
        arcs = torch.searchsorted(self._keys, keys).clamp(max=len(self._keys) - 1)
        return arcs, self._keys[arcs] == keys

    def step(self, states: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities of words behind their histories, and the histories then; all of one shape."""
        arcs, found = self._find(self._chain[states], words.unsqueeze(-1))
        first = found.to(torch.uint8).argmax(-1, keepdim=True)  # the longest history that has an arc for the word
        arc = arcs.gather(-1, first).squeeze(-1)
        return self._weights[states].gather(-1, first).squeeze(-1) + self._log_probs[arc], self._next[arc]

    def scores(self, states: Tensor) -> Tensor:
        """Log-probabilities of all words behind each history: `[...]` to `[..., words]`."""
        chain, weights = self._chain[states.reshape(-1)].long(), self._weights[states.reshape(-1)]
        rows = self._log_probs[: len(self.words)] + weights[:, -1:]
        numbers = torch.arange(len(chain), device=chain.device)
        for history, weight in zip(chain.T.flip(0), weights.T.flip(0)):  # longer histories overwrite what is shorter
            first = self._first_arc[history]
            count = torch.where(history == 0, 0, self._first_arc[history + 1] - first)
            row = numbers.repeat_interleave(count)
            arc = torch.arange(len(row), device=chain.device) + (first - count.cumsum(0) + count)[row]
            rows[row, self._keys[arc] % len(self.words)] = self._log_probs[arc] + weight[row]
        return rows.view(*states.shape, len(self.words))

    def end(self, states: Tensor) -> Tensor:
        """Log-probabilities that the sentence ends; 0 where the model has no `</s>`."""
        if self._end_id is None:
            return torch.zeros(states.shape, device=states.device)
        return self.step(states, torch.full_like(states, self._end_id))[0]

    def sentence(self, words: Sequence[str]) -> float:
        """Log-probability of a sentence, its end included."""
        return _sentence(self, words)


class KenLm:
    """The same for a binary of KenLM, asked word by word: for models that are too large for ARPA.

    Args:
        path: a file that the kenlm library reads.
        words: the vocabulary, which a binary does not tell: a list, or a file with a word to a line.

    Raises:
        UserError: kenlm is not installed, a file can not be read, or the model knows none of the words.
    """

    def __init__(self, path: str | Path, words: Sequence[str] | str | Path) -> None:
        self._kenlm: Any = require("kenlm", extra="kenlm")
        try:
            self._model = self._kenlm.Model(str(Path(path).expanduser()))
            listed = Path(words).expanduser().read_text("utf-8").split() if isinstance(words, str | Path) else words
        except OSError as error:
            raise UserError(f"can not read the language model {path} or its words: {error}") from None
        known = [word for word in dict.fromkeys(listed) if word in self._model and word not in ("<s>", "</s>", "<unk>")]
        if not known:
            raise UserError(
                f"{path} knows none of the {len(listed)} words: is it a model of other units or letter case?"
            )
        self.words = ["<unk>", *known]
        self._ids = {word: index for index, word in enumerate(self.words)}
        self.unknown_id, self.order, self.special_ids = 0, self._model.order, {0}
        begin = self._kenlm.State()
        self._model.BeginSentenceWrite(begin)
        self._states, self._number_of, self.start_state = [begin], {begin: 0}, 0
        self._steps: dict[tuple[int, int], tuple[float, int]] = {}

    @property
    def num_states(self) -> int:
        """Histories that were met."""
        return len(self._states)

    def to(self, device: torch.device | str) -> KenLm:
        """Nothing is moved: KenLM works on the CPU."""
        return self

    def word_id(self, word: str) -> int:
        """A word's id; that of `<unk>` if it is not in `words`."""
        return self._ids.get(word, self.unknown_id)

    def _step(self, state: int, word: int) -> tuple[float, int]:
        if (state, word) not in self._steps:
            following = self._kenlm.State()
            score = self._model.BaseScore(self._states[state], self.words[word], following) * _LN_10
            number = self._number_of.setdefault(following, len(self._states))
            if number == len(self._states):
                self._states.append(following)
            self._steps[state, word] = score, number
        return self._steps[state, word]

    def step(self, states: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        """As `NgramLm.step`."""
        pairs = zip(states.flatten().tolist(), words.flatten().tolist())
        scores, following = zip(*(self._step(*pair) for pair in pairs))
        score = torch.tensor(scores, device=states.device).view(states.shape)
        return score, torch.tensor(following, device=states.device).view(states.shape)

    def scores(self, states: Tensor) -> Tensor:
        """As `NgramLm.scores`."""
        scratch = self._kenlm.State()
        rows = [
            [self._model.BaseScore(self._states[state], word, scratch) * _LN_10 for word in self.words]
            for state in states.flatten().tolist()
        ]
        return torch.tensor(rows, device=states.device).view(*states.shape, len(self.words))

    def end(self, states: Tensor) -> Tensor:
        """As `NgramLm.end`."""
        scratch = self._kenlm.State()
        histories = (self._states[state] for state in states.flatten().tolist())
        ends = [self._model.BaseScore(history, "</s>", scratch) * _LN_10 for history in histories]
        return torch.tensor(ends, device=states.device).view(states.shape)

    def sentence(self, words: Sequence[str]) -> float:
        """As `NgramLm.sentence`."""
        return _sentence(self, words)


def _sentence(lm: NgramLm | KenLm, words: Sequence[str]) -> float:
    state, total = torch.tensor([lm.start_state]), 0.0
    for word in words:
        score, state = lm.step(state, torch.tensor([lm.word_id(word)]))
        total += float(score)
    return total + float(lm.end(state))


# --------------------------------------------------------------------------------------------------------------- ARPA


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with path.open("rb") as raw:
            is_zipped = raw.read(2) == b"\x1f\x8b"
        with (gzip.open if is_zipped else open)(path, "rt", encoding="utf-8", newline="\n") as file:
            yield from enumerate((line.strip(" \t\r\n") for line in file), start=1)
    except (OSError, EOFError, zlib.error) as error:
        told = getattr(error, "strerror", None) or error
        raise UserError(f"can not read the language model {path}: {told}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is no ARPA file: it is not text in UTF-8") from None


def _read_arpa(path: Path) -> tuple[list[str], list[_Grams]]:
    """The words of the vocabulary, and the n-grams of each order."""
    lines = _lines(path)
    counts: list[int] = []
    if not any(line == "\\data\\" for _, line in lines):
        raise UserError(f"{path} is no ARPA file: it has no line \\data\\")
    ids: dict[str, int] = {}
    grams: list[_Grams] = []
    for number, line in lines:
        if line.startswith("ngram ") and not grams:
            counts.append(_count(line, path, number))
        elif line == "\\end\\":
            break
        elif line.startswith("\\"):
            if line != f"\\{len(grams) + 1}-grams:" or len(grams) == len(counts):
                raise UserError(f"{path}:{number}: {line!r} where \\{len(grams) + 1}-grams: was to come")
            grams.append(_read_order(lines, len(grams) + 1, counts[len(grams)], ids, path))
        elif line:
            raise UserError(f"{path}:{number}: {line[:60]!r} is beyond the number of n-grams that the head gives")
    else:
        raise UserError(f"{path} is cut off: it has no line \\end\\")
    if not counts or len(grams) != len(counts):
        raise UserError(f"{path}: has {len(grams)} orders of n-grams, its head gives {len(counts)}")
    if "<unk>" not in ids:
        ids["<unk>"] = len(ids)
        first = grams[0]
        log_probs = torch.cat([first.log_probs, torch.tensor([_NEVER])])
        grams[0] = _Grams(first.words, log_probs, torch.cat([first.backoffs, torch.zeros(1)]))
    return list(ids), grams


def _count(line: str, path: Path, number: int) -> int:
    order, _, count = line.removeprefix("ngram ").partition("=")
    if not (order.strip().isdigit() and count.strip().isdigit()):
        raise UserError(f"{path}:{number}: {line!r} is not of the form 'ngram 2=1234'")
    return int(count)


def _read_order(lines: Iterator[tuple[int, str]], order: int, count: int, ids: dict[str, int], path: Path) -> _Grams:
    words, log_probs, backoffs = array("q"), array("f"), array("f")
    while len(log_probs) < count:
        number, line = next(lines, (0, "\\end\\"))
        if not line:
            continue
        fields = line.replace("\t", " ").split(" ")
        if "" in fields:
            fields = [field for field in fields if field]
        if line == "\\end\\" or len(fields) not in (order + 1, order + 2):
            raise UserError(f"{path}:{number}: {line[:60]!r} is none of the {count} n-grams of order {order}")
        try:
            log_probs.append(float(fields[0]))
            backoffs.append(float(fields[-1]) if len(fields) == order + 2 else 0.0)
            gram = ["<unk>" if word == "<UNK>" else word for word in fields[1 : order + 1]]
            if order == 1:
                if gram[0] in ids:
                    raise UserError(f"{path}:{number}: the word {gram[0]!r} comes a second time")
                ids[gram[0]] = len(ids)
            words.extend([ids[word] for word in gram])
        except ValueError as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{path}:{number}: {line[:60]!r} has no number where one was to come") from None
        except KeyError as error:
            raise UserError(f"{path}:{number}: the word {error} is not among the 1-grams") from None
    columns = (torch.from_numpy(np.array(column)) for column in (words, log_probs, backoffs))
    return _Grams(next(columns).view(count, order), *columns)

"""Fixed shares of endless streams: what makes a mixture a pure function of the pass.  Shapes: N items, Q quota."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

# A pass is spread over the lengths of a corpus in at least so many steps.
_MIN_STRATUM = 8


class Corpus:
    """The items of one part in an endless order, permutation behind permutation; a pass takes the next `quota` of it.

    So each item is met equally often (to within one), a small part is shuffled anew each time it has been through, and
    nothing need be remembered: where pass `p` begins is `p * quota`. The permutations are stratified by length: equal
    stretches hold about equal lengths.

    Args:
        name: keys the permutations, with `seed`: another part more or less changes nothing in this one.
        items: int `[N]`, indices of the dataset.
        seconds: float64 `[N]`, what is balanced between passes.
        quota: items of a pass.
    """

    def __init__(self, name: str, items: np.ndarray, seconds: np.ndarray, quota: int, seed: int) -> None:
        self.name, self.items, self.seconds, self.quota = name, items, seconds, quota
        self._key = [seed % 2**63, zlib.crc32(name.encode())]
        self._by_length = np.argsort(seconds, kind="stable")
        self._stratum = max(_MIN_STRATUM, -(-len(items) // quota))

    @property
    def visits_per_pass(self) -> float:
        """How often a pass meets an item, on average."""
        return self.quota / len(self.items)

    def window(self, pass_number: int) -> tuple[np.ndarray, np.ndarray]:
        """What pass `pass_number` takes: positions in `items`, int64 `[Q]`, and how often it met each before."""
        first, last = pass_number * self.quota, (pass_number + 1) * self.quota
        num_items = len(self.items)
        positions, visits = [], []
        for cycle in range(first // num_items, -(-last // num_items)):
            start = cycle * num_items
            piece = self._permutation(cycle)[max(first - start, 0) : last - start]
            positions.append(piece)
            visits.append(np.full(len(piece), cycle - first // num_items))
        return np.concatenate(positions), np.concatenate(visits)

    def _permutation(self, cycle: int) -> np.ndarray:
        """Every stratum of neighbours in length is dealt out over the whole permutation, in random order."""
        rng, num_items = np.random.default_rng([*self._key, cycle]), len(self.items)
        place = np.arange(num_items)
        stratum = place // self._stratum
        within = np.empty(num_items)
        within[np.argsort(stratum + rng.random(num_items))] = place - stratum * self._stratum
        size = np.minimum(self._stratum, num_items - stratum * self._stratum)
        return self._by_length[np.argsort((within + rng.random(num_items)) / size)]


@dataclass(frozen=True)
class Share:
    """What a part makes of a pass.

    Attributes:
        samples, seconds: its share of all, by number and by length.
        visits: how often one of its items is met.
    """

    samples: float
    seconds: float
    visits: float


def shares_of(corpora: Sequence[Corpus], pass_number: int) -> dict[str, Share]:
    """The realised shares of a pass."""
    seconds = {corpus.name: float(corpus.seconds[corpus.window(pass_number)[0]].sum()) for corpus in corpora}
    all_items = sum(corpus.quota for corpus in corpora)
    all_seconds = sum(seconds.values()) or 1.0
    return {
        corpus.name: Share(corpus.quota / all_items, seconds[corpus.name] / all_seconds, corpus.visits_per_pass)
        for corpus in corpora
    }


def spread(counts: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """An order of `counts[k]` things of kind `k` in which each kind comes at even distances; kinds, int `[sum]`."""
    times = [(np.arange(count) + rng.random()) / count for count in counts]
    kinds = np.repeat(np.arange(len(counts)), counts)
    return kinds[np.argsort(np.concatenate(times), kind="stable")]


def apportion(total: int, rates: Mapping[str, float]) -> dict[str, int]:
    """Whole numbers that sum to `total`, in proportion to `rates` as nearly as can be, and at least 1."""
    scale = total / sum(rates.values())
    quotas = {name: max(1, int(rate * scale)) for name, rate in rates.items()}
    by_remainder = sorted(rates, key=lambda name: quotas[name] - rates[name] * scale)
    for name in by_remainder[: max(0, total - sum(quotas.values()))]:
        quotas[name] += 1
    return quotas

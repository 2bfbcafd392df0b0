"""The batches of one pass, kept as arrays.  Shapes: N items, G batches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from utils.errors import UserError


class Visit(int):
    """An index that a pass has met before, so that whoever keys random numbers by the index can tell visits apart."""

    visit: int

    def __new__(cls, index: int, visit: int) -> Visit:
        self = super().__new__(cls, index)
        self.visit = visit
        return self

    def __reduce__(self) -> tuple:
        return Visit, (int(self), self.visit)


class BatchPlan(Sequence[list[int]]):
    """A list of batches that costs a few bytes per item: batch `g` is cut from `order` when it is asked for.

    Args:
        order: int `[N]`, indices of the dataset.
        bounds: int `[G, 2]`; batch `g` is `order[bounds[g, 0] : bounds[g, 1]]`.
        visits: int `[N]`, how often the pass met the item before; None where it never did. Those above 0 come out as
            `Visit`.
    """

    def __init__(self, order: np.ndarray, bounds: np.ndarray, visits: np.ndarray | None = None) -> None:
        self.order, self.bounds = order, bounds
        self.visits = visits if visits is not None and visits.any() else None

    def __len__(self) -> int:
        return len(self.bounds)

    def __getitem__(self, g: int) -> list[int]:  # type: ignore[override]
        first, last = self.bounds[g]
        indices = self.order[first:last].tolist()
        if self.visits is None:
            return indices
        visits = self.visits[first:last].tolist()
        return [Visit(index, visit) if visit else index for index, visit in zip(indices, visits)]

    def sizes(self) -> np.ndarray:
        """Items of each batch, int `[G]`."""
        return self.bounds[:, 1] - self.bounds[:, 0]


def split_to(bounds: np.ndarray, num_batches: int) -> np.ndarray:
    """Halve the batches of most items until there are `num_batches`; int `[G, 2]` to `[num_batches, 2]`.

    Raises:
        UserError: there are fewer items than that.
    """
    while (missing := num_batches - len(bounds)) > 0:
        sizes = bounds[:, 1] - bounds[:, 0]
        chosen = np.argsort(-sizes, kind="stable")[:missing]
        chosen = chosen[sizes[chosen] > 1]
        if not len(chosen):
            raise UserError(f"{int(sizes.sum())} items can not make {num_batches} batches")
        middle = (bounds[chosen, 0] + bounds[chosen, 1]) // 2
        second = np.stack([middle, bounds[chosen, 1]], axis=1)
        bounds = bounds.copy()
        bounds[chosen, 1] = middle
        bounds = np.concatenate([bounds, second])
    return bounds

"""The running level of a loss, and what lies far above it: `trainer.max_loss_ratio`.

The loss of an update is that of its whole window, over all ranks and micro-steps. Its *level* is the median of the last
128 updates that were no spikes, so that one spike does not hide the next. A *spike* is a finite loss above

    level + (ratio - 1) |level|

which is `ratio` times a level above zero. For a loss that hovers around zero a ratio says little: leave it off.

To go back to before a spike and leave out the data that led there is what PaLM did by hand (Chowdhery et al. 2022,
section 5.1); to hold each update against the last 128 is how OLMo-core decides which to skip.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

_WINDOW = 128  # updates
_FEWEST = 16  # updates known before any can be a spike
_MOST_PENDING = 4096  # updates not yet looked at; older ones are forgotten


@dataclass(frozen=True, slots=True)
class Spike:
    """A loss far above its level; `limit` is where spikes begin."""

    name: str
    update: int
    loss: float
    level: float
    limit: float


@dataclass(slots=True)
class _Update:
    name: str
    number: int
    losses: list[Tensor] = field(default_factory=list)
    counts: list[Tensor | int] = field(default_factory=list)


class LossLevels:
    """Holds each update's loss against what is usual. Nothing waits for the device but `first_spike`.

    Args:
        ratio: above 1; None: there are no spikes.
    """

    def __init__(self, ratio: float | None, device: torch.device, num_processes: int) -> None:
        self._ratio, self._device, self._num_processes = ratio, device, num_processes
        self._dtype = torch.float32 if device.type == "mps" else torch.float64
        self._open: dict[str, _Update] = {}
        self._pending: deque[_Update] = deque(maxlen=_MOST_PENDING)
        self._usual: dict[str, deque[float]] = {}

    def see(self, name: str, update: int, loss: Tensor, num_items: Tensor | int | None) -> None:
        """Note a micro-step's loss called `name`: the sum of `num_items`, or a mean, of the update it is part of."""
        part = self._open.setdefault(name, _Update(name, update))
        part.losses.append(loss)
        part.counts.append(1 if num_items is None else num_items)

    def end_update(self, name: str, update: int) -> None:
        """The window of an update has come to its end, on every rank, whether this one had a share in it or not."""
        self._pending.append(self._open.pop(name, _Update(name, update)))

    def first_spike(self) -> Spike | None:
        """The first spike of the updates not yet looked at; those before it join the level. Collective."""
        if self._ratio is None or not self._pending:
            return None
        pending = list(self._pending)
        self._pending.clear()
        sums = torch.stack([self._sum(update) for update in pending])
        if self._num_processes > 1:
            torch.distributed.all_reduce(sums)
        for update, (total, count) in zip(pending, sums.tolist()):
            if count == 0 or not math.isfinite(total):
                continue
            loss, usual = total / count, self._usual.setdefault(update.name, deque(maxlen=_WINDOW))
            if len(usual) >= _FEWEST:
                level = statistics.median(usual)
                limit = level + (self._ratio - 1.0) * abs(level)
                if loss > limit:
                    return Spike(update.name, update.number, loss, level, limit)
            usual.append(loss)
        return None

    def forget(self) -> None:
        """Leave out what was not yet looked at: its update is undone."""
        self._open.clear()
        self._pending.clear()

    def state_dict(self) -> dict[str, list[float]]:
        return {name: list(usual) for name, usual in self._usual.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.forget()
        self._usual = {name: deque(usual, maxlen=_WINDOW) for name, usual in state.items()}

    def _sum(self, update: _Update) -> Tensor:
        """Loss and count of this rank's part, `[2]`."""
        if not update.losses:
            return torch.zeros(2, dtype=self._dtype, device=self._device)
        total = torch.stack(update.losses).to(self._dtype).sum()
        return torch.stack((total, torch.as_tensor(sum(update.counts), dtype=self._dtype, device=self._device)))

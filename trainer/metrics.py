"""Meters: sums and counts that stay on the device, added up over ranks once, when somebody wants to read them."""

from __future__ import annotations

import zlib
from typing import Any

import torch
from torch import Tensor

from trainer.step import StepOutput


class Meter:
    """A running sum and count."""

    __slots__ = ("count", "total")

    def __init__(self, device: torch.device) -> None:
        # float64 holds sums of millions of losses and counts exactly; MPS has none.
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self.total = torch.zeros((), dtype=dtype, device=device)
        self.count: Tensor | int | float = 0

    def add(self, total: Tensor | float, count: Tensor | int | float = 1) -> None:
        self.total += total.detach() if isinstance(total, Tensor) else total
        self.count = self.count + (count.detach() if isinstance(count, Tensor) else count)


class Meters:
    """Named meters of one stage. Nothing here waits for the device but `reduce`."""

    def __init__(self, device: torch.device, num_processes: int = 1) -> None:
        self._device, self._num_processes = device, num_processes
        self._meters: dict[str, Meter] = {}

    def add(self, name: str, total: Tensor | float, count: Tensor | int | float = 1) -> None:
        """Add `total`, the sum over `count` items, to the mean called `name`."""
        meter = self._meters.get(name)
        if meter is None:
            meter = self._meters[name] = Meter(self._device)
        meter.add(total, count)

    def add_output(self, output: StepOutput, prefix: str, loss_name: str = "loss") -> None:
        """Add a step's loss and metrics, their names behind `prefix`."""
        if output.loss is not None:
            self.add(prefix + loss_name, output.loss, 1 if output.num_items is None else output.num_items)
        for name, value in output.metrics.items():
            total, count = value if isinstance(value, tuple) else (value, 1)
            self.add(prefix + name, total, count)

    def reduce(self) -> dict[str, float]:
        """The means over all ranks; a name with nothing counted is left out. Collective; empties the meters."""
        meters, self._meters = self._meters, {}
        names = self._agree_on_names(sorted(meters))
        if not names:
            return {}
        empty = Meter(self._device)
        chosen = [meters.get(name, empty) for name in names]
        totals = torch.stack([m.total for m in chosen])
        counts = torch.stack([torch.as_tensor(m.count, dtype=totals.dtype, device=self._device) for m in chosen])
        sums = torch.stack((totals, counts))
        if self._num_processes > 1:
            torch.distributed.all_reduce(sums)
        means = zip(names, *sums.tolist())  # the one wait for the device
        return {name: total / count for name, total, count in means if count != 0}

    def _agree_on_names(self, names: list[str]) -> list[str]:
        # A rank whose shard brought no such item lacks the name; exchange names only if the ranks' lists differ.
        if self._num_processes == 1:
            return names
        digest = float(zlib.crc32("\n".join(names).encode()))
        span = torch.tensor([digest, -digest], dtype=torch.float64, device=self._device)
        torch.distributed.all_reduce(span, torch.distributed.ReduceOp.MAX)
        if span.sum().item() == 0:
            return names
        gathered: list[Any] = [None] * self._num_processes
        torch.distributed.all_gather_object(gathered, names)
        return sorted(set().union(*gathered))

    def state_dict(self) -> dict[str, tuple[Tensor, Tensor | int | float]]:
        return {name: (meter.total.clone(), meter.count) for name, meter in self._meters.items()}

    def load_state_dict(self, state: dict[str, tuple[Tensor, Tensor | int | float]]) -> None:
        self._meters = {}
        for name, (total, count) in state.items():
            self.add(name, total.to(self._device), count.to(self._device) if isinstance(count, Tensor) else count)

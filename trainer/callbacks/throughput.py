"""How fast it goes, and what it waits for."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch

from trainer.callbacks.base import Callback

if TYPE_CHECKING:
    from trainer.trainer import Trainer


class Throughput(Callback):
    """At each log: `perf/steps_per_s`, `perf/data_wait`, `perf/data_cpu`, `perf/memory_gib`; validation left out.

    `data_wait` is the share of the time that the loop waited for batches; `data_cpu` what reading them cost, in cores
    kept busy, here or in workers (0 for a stream, of which it is not known).

    Args:
        size_key: a tensor of the batch whose sum says how much was processed (`audio_lens`); None: not measured.
        size_name: what that is called, per second and over all ranks (`audio_seconds` -> `perf/audio_seconds_per_s`).
        size_unit: how much of the tensor is one of it (the sample rate in Hz, for seconds).
    """

    def __init__(self, size_key: str | None = None, size_name: str = "size", size_unit: float = 1.0) -> None:
        self._size_key, self._size_name, self._size_unit = size_key, size_name, size_unit
        self._size: torch.Tensor | int = 0
        self._away = 0.0
        self._left = 0.0

    def on_train_start(self, trainer: Trainer) -> None:
        self._restart(trainer)

    def on_train_batch_end(self, trainer: Trainer, output: Any, batch: Any, batch_idx: int) -> None:
        if self._size_key is not None:
            self._size = self._size + batch[self._size_key].sum()

    def on_validation_start(self, trainer: Trainer) -> None:
        self._left = time.perf_counter()

    def on_validation_end(self, trainer: Trainer) -> None:
        self._away += time.perf_counter() - self._left

    def on_log(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        seconds = max(time.perf_counter() - self._started - self._away, 1e-9)
        metrics["perf/steps_per_s"] = (trainer.global_step - self._first_step) / seconds
        metrics["perf/data_wait"] = (trainer.stream.wait_seconds - self._first_wait) / seconds
        metrics["perf/data_cpu"] = (trainer.stream.cpu_seconds - self._first_cpu) / seconds
        if self._size_key is not None:
            size = torch.as_tensor(self._size, dtype=torch.float64, device=trainer.device)
            total = trainer.accelerator.reduce(size) if not trainer.is_alone else size
            metrics[f"perf/{self._size_name}_per_s"] = float(total) / self._size_unit / seconds
        metrics["perf/memory_gib"] = _memory(trainer.device) / 2**30
        self._restart(trainer)

    def _restart(self, trainer: Trainer) -> None:
        self._started, self._away, self._size = time.perf_counter(), 0.0, 0
        self._first_step = trainer.global_step
        self._first_wait, self._first_cpu = trainer.stream.wait_seconds, trainer.stream.cpu_seconds


def _memory(device: torch.device) -> int:
    """Bytes: the peak allocated on a GPU, the resident set of the process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

"""How much of what the model computes is padding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from trainer.callbacks.base import Callback
from utils.errors import UserError

if TYPE_CHECKING:
    from trainer.trainer import Trainer


class Padding(Callback):
    """At each log, over the batches since the last: `perf/padding`, the share of all positions that are padding, and
    `perf/<size_name>_per_batch`, what a batch of one rank holds without it. Both are over all ranks.

    Args:
        lengths: the batch's tensor of true lengths, `[B]`.
        padded: the batch's padded tensor, `[B, ...]`.
        dim: of `padded` that the lengths are along.
        size_name, size_unit: what the lengths are called, and how much of them is one of it (the sample rate in Hz, for
            `audio_seconds`).

    Raises:
        UserError: a batch has no such tensors.
    """

    def __init__(
        self, lengths: str, padded: str, dim: int = -1, size_name: str = "size", size_unit: float = 1.0
    ) -> None:
        self._lengths, self._padded, self._dim = lengths, padded, dim
        self._size_name, self._size_unit = size_name, size_unit
        self._size: torch.Tensor | int = 0
        self._room = self._num_batches = 0

    def on_train_start(self, trainer: Trainer) -> None:
        self._restart()

    def on_train_batch_end(self, trainer: Trainer, output: Any, batch: Any, batch_idx: int) -> None:
        try:
            lengths, padded = batch[self._lengths], batch[self._padded]
        except KeyError as error:
            raise UserError(f"the padding callback finds no {error} in a batch, which has {', '.join(batch)}") from None
        self._size = self._size + lengths.sum()  # stays on the device
        self._room += len(lengths) * padded.shape[self._dim]
        self._num_batches += 1

    def on_log(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        counted = torch.stack([
            torch.as_tensor(value, dtype=torch.float64, device=trainer.device)
            for value in (self._size, self._room, self._num_batches)
        ])  # fmt: skip
        size, room, num_batches = (counted if trainer.is_alone else trainer.accelerator.reduce(counted)).tolist()
        self._restart()
        if room:
            metrics["perf/padding"] = 1 - size / room
            metrics[f"perf/{self._size_name}_per_batch"] = size / self._size_unit / num_batches

    def _restart(self) -> None:
        self._size = 0
        self._room = self._num_batches = 0

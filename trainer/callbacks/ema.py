"""An exponential moving average of the weights, validated in their stead and saved beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from trainer.callbacks.base import Callback
from utils.errors import UserError

if TYPE_CHECKING:
    from trainer.checkpoint import Checkpoint
    from trainer.trainer import Trainer


class ExponentialMovingAverage(Callback):
    """After each update  a <- d a + (1 - d) w  with d = min(decay, (1 + n) / (10 + n)) at the n-th update.

    Buffers (running statistics of BatchNorm) are copied. Validation and test see the average, and checkpoints hold
    it as `ema.safetensors`, which inference prefers.

    Args:
        decay: the final d; 0.999 averages over some thousand updates.
        every_n_steps: average only every so many updates.
    """

    def __init__(self, decay: float = 0.999, every_n_steps: int = 1) -> None:
        self._decay, self._every = decay, every_n_steps
        self._num_updates = 0
        self._average: dict[str, Tensor] = {}
        self._live: dict[str, Tensor] = {}
        self._averaged: list[str] = []  # names; the others are copied
        self._copied: list[str] = []
        self._is_swapped = False

    def on_fit_start(self, trainer: Trainer) -> None:
        if trainer.is_sharded:
            raise UserError("callbacks.ema: does not go with FSDP, use DDP or set it to null")

    def on_train_start(self, trainer: Trainer) -> None:
        self._live = saved_tensors(trainer.unwrapped_model)
        self._averaged = [n for n, t in self._live.items() if isinstance(t, nn.Parameter) and t.is_floating_point()]
        self._copied = [name for name in self._live if name not in set(self._averaged)]
        if not self._average:
            self._average = {name: tensor.detach().clone() for name, tensor in self._live.items()}

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, output: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self._num_updates or trainer.global_step % self._every:
            return
        self._num_updates = trainer.global_step
        decay = min(self._decay, (1 + self._num_updates) / (10 + self._num_updates))
        average, live = self._average, self._live
        torch._foreach_lerp_([average[n] for n in self._averaged], [live[n] for n in self._averaged], 1.0 - decay)
        for name in self._copied:
            average[name].copy_(live[name])

    def on_validation_start(self, trainer: Trainer) -> None:
        self._swap()

    def on_validation_end(self, trainer: Trainer) -> None:
        self._swap()

    def on_test_start(self, trainer: Trainer) -> None:
        self._swap()

    def on_test_end(self, trainer: Trainer) -> None:
        self._swap()

    def on_exception(self, trainer: Trainer, error: BaseException) -> None:
        if self._is_swapped:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        if not self._average:  # the sanity check comes before there is one
            return
        for name, tensor in self._live.items():
            before = tensor.detach().clone()
            tensor.copy_(self._average[name])
            self._average[name].copy_(before)
        self._is_swapped = not self._is_swapped

    def on_save_checkpoint(self, trainer: Trainer, checkpoint: Checkpoint) -> None:
        weights = dict(checkpoint.weights["model"])
        checkpoint.weights["ema"] = weights | self._average

    def on_load_checkpoint(self, trainer: Trainer, checkpoint: Checkpoint) -> None:
        average = checkpoint.weights.get("ema")
        if average is not None:
            own = saved_tensors(trainer.unwrapped_model)
            self._average = {name: average[name].to(tensor.device).clone() for name, tensor in own.items()}

    def state_dict(self) -> dict[str, Any]:
        return {"num_updates": self._num_updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._num_updates = state["num_updates"]


def saved_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, each once, without those buffers that a state dict leaves out."""
    names = set(model.state_dict())
    return {name: t for name, t in (*model.named_parameters(), *model.named_buffers()) if name in names}

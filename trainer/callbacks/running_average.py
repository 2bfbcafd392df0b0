"""The sum of the weights over all updates: the mean over any stretch between two checkpoints follows from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trainer.averaging import COUNT, SUMS
from trainer.callbacks.base import Callback
from trainer.callbacks.ema import saved_tensors
from utils.errors import UserError

if TYPE_CHECKING:
    from trainer.checkpoint import Checkpoint
    from trainer.trainer import Trainer


class RunningAverage(Callback):
    """Keeps  S_n = w_1 + ... + w_n  in float64 and saves it in every checkpoint.

    The mean over the updates (a, b] is (S_b - S_a) / (b - a): `python -m trainer.averaging --between CKPT_A CKPT_B`
    makes a model checkpoint of it. Training and validation see nothing of this.

    Args:
        every_n_steps: add only every so many updates; the mean is then over these.
    """

    def __init__(self, every_n_steps: int = 1) -> None:
        self._every = every_n_steps
        self._newest_step = 0
        self._num_summed = 0
        self._live: dict[str, Tensor] = {}
        self._sums: dict[str, Tensor] = {}

    def on_fit_start(self, trainer: Trainer) -> None:
        if trainer.is_sharded:
            raise UserError("callbacks.running_average: does not go with FSDP, use DDP or set it to null")

    def on_train_start(self, trainer: Trainer) -> None:
        self._live = _floating(trainer)
        if not self._sums:
            self._sums = {name: torch.zeros_like(t, dtype=torch.float64) for name, t in self._live.items()}

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, output: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self._newest_step or trainer.global_step % self._every:
            return
        self._newest_step = trainer.global_step
        self._num_summed += 1
        torch._foreach_add_(list(self._sums.values()), list(self._live.values()))

    def on_save_checkpoint(self, trainer: Trainer, checkpoint: Checkpoint) -> None:
        checkpoint.weights[SUMS] = self._sums | {COUNT: torch.tensor(self._num_summed)}

    def on_load_checkpoint(self, trainer: Trainer, checkpoint: Checkpoint) -> None:
        sums = checkpoint.weights.get(SUMS)
        if sums is None:
            return
        for name, tensor in _floating(trainer).items():
            if name in checkpoint.frozen:  # left out, and the same at every update
                self._sums[name] = tensor.detach().double() * self._num_summed
            else:
                self._sums[name] = sums[name].to(tensor.device).clone()

    def state_dict(self) -> dict[str, Any]:
        return {"newest_step": self._newest_step, "num_summed": self._num_summed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._newest_step, self._num_summed = state["newest_step"], state["num_summed"]


def _floating(trainer: Trainer) -> dict[str, Tensor]:
    return {name: t for name, t in saved_tensors(trainer.unwrapped_model).items() if t.is_floating_point()}

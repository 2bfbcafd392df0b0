"""One optimizer with all that belongs to it: parameters, schedule, accumulation window, clipping.

A run has one of these, or one per named optimizer. With several, the model is not wrapped in DDP: each optimizer's
gradients are averaged over ranks right before its step, so updates may come in any order and none spoils another's.
The same goes for batches that a rank may take in parts (`in_parts`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn

from trainer.schedule import Lengths, injected_lengths, steps_on_metric
from trainer.step import StepOutput, Window, average_gradients, scale_gradients
from utils.errors import UserError

# Where `loss.backward()` and `optimizer.step()` need nothing of Accelerate's but, for fp16, its scaler.
_PLAIN = (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU)


@dataclass(frozen=True)
class Clipping:
    """Gradient clipping, by the norm over all parameters of an optimizer, or by value; None: off."""

    max_norm: float | None = None
    max_value: float | None = None


class OptimizerUnit:
    """Backward into, and updates of, one optimizer's parameters."""

    def __init__(
        self,
        name: str,
        optimizer: Any,
        accelerator: Accelerator,
        clipping: Clipping,
        num_micro_steps: int,
        one_of_several: bool,
        in_parts: bool = False,
    ) -> None:
        self.parameters: list[nn.Parameter] = [p for group in optimizer.param_groups for p in group["params"]]
        self.scheduler: Any = None
        self._wants_metric = False
        self.loss_name = f"{name}_loss" if one_of_several else "loss"
        self.grad_norm_name = f"{name}_grad_norm" if one_of_several else "grad_norm"
        self._accelerator, self._clipping, self._one_of_several = accelerator, clipping, one_of_several
        self._plain = accelerator.distributed_type in _PLAIN and accelerator.scaler is None
        self._wrapped = accelerator.prepare_optimizer(optimizer)
        # The wrapper's step searches the import path twice; only a GradScaler or a sharded model is worth that.
        self.optimizer = self._wrapped.optimizer if self._plain else self._wrapped
        self._averages = (one_of_several or in_parts) and accelerator.num_processes > 1
        self._num_processes = accelerator.num_processes
        self._window = Window(num_micro_steps, accelerator.num_processes, accelerator.device, in_parts)

    def backward(self, output: StepOutput, before: Callable[[Tensor], None]) -> None:
        """Backward of one micro-step; with several optimizers only into this one's parameters."""
        loss = self._window.weigh(output)
        before(loss)
        into = {"inputs": self.parameters} if self._one_of_several else {}
        if self._plain:
            loss.backward(**into)
        else:
            self._accelerator.backward(loss, **into)
        self._window.count(output)

    def finish_gradients(self) -> None:
        """End the window: gradients become those of the global mean."""
        if self._averages:
            average_gradients(self.parameters, self._num_processes)
        if not self._plain:
            self._accelerator.unscale_gradients(self._wrapped)
        factor = self._window.close()
        if factor is not None:
            scale_gradients(self.parameters, factor)

    def clip(self) -> Tensor | None:
        """Clip; return the norm before clipping, `[]`, where it was computed."""
        if self._clipping.max_value is not None:
            torch.nn.utils.clip_grad_value_(self.parameters, self._clipping.max_value)
        if self._clipping.max_norm is None:
            return None
        return _whole(torch.nn.utils.clip_grad_norm_(self.parameters, self._clipping.max_norm))

    def gradient_norm(self) -> Tensor:
        """The norm of all gradients, `[]`; they stay as they are."""
        return _whole(torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None]))

    def step(self) -> bool:
        """Update the weights; False where a GradScaler skipped it."""
        self.optimizer.step()
        return self._plain or not self._wrapped.step_was_skipped

    def make_scheduler(self, make: Callable[..., Any] | None, lengths: Lengths) -> None:
        """Build the schedule from its partial; the lengths it asks for are injected."""
        if make is not None:
            self.scheduler = make(self._wrapped.optimizer, **injected_lengths(make, lengths))
            self._wants_metric = steps_on_metric(self.scheduler)

    def step_scheduler(self) -> None:
        """Step a schedule that goes by time."""
        if self.scheduler is not None and not self._wants_metric:
            self.scheduler.step()

    def step_scheduler_on(self, metrics: Mapping[str, float], monitor: str) -> None:
        """Step a schedule that goes by a metric.

        Raises:
            UserError: nothing of that name was logged.
        """
        if self.scheduler is None or not self._wants_metric:
            return
        if monitor not in metrics:
            raise UserError(f"trainer.lr_scheduler_monitor: no metric {monitor!r}, only {', '.join(sorted(metrics))}")
        self.scheduler.step(metrics[monitor])

    @property
    def torch_optimizer(self) -> Any:
        """The optimizer itself, out of whatever accelerate puts around it."""
        return self._wrapped.optimizer

    @property
    def learning_rates(self) -> list[float]:
        return [float(group["lr"]) for group in self._wrapped.optimizer.param_groups]


def _whole(tensor: Tensor) -> Tensor:
    """A tensor that ranks hold parts of, on each of them."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def match_by_name(given: Any, names: Sequence[str], what: str) -> dict[str, Any]:
    """One value for all names, or a mapping with some of the names.

    Raises:
        UserError: the mapping has a name that no optimizer has.
    """
    if not isinstance(given, Mapping):
        return dict.fromkeys(names, given)
    if unknown := [name for name in given if name not in names]:
        raise UserError(f"{what}.{unknown[0]}: there is no optimizer of that name, only {', '.join(names)}")
    return {name: given.get(name) for name in names}

"""What a step hands back, and how the gradients of a window of micro-steps become one update.

A *window* is the micro-steps between two updates: `gradient_accumulation_steps` of them, fewer at the end of an epoch.
With `num_items` the gradient of an update is that of sum(losses) / sum(items) over every rank and micro-step of the
window, so the same global batch gives the same weights on any topology. Without, it is the mean of the means.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

MetricValue = Tensor | float | tuple[Tensor | float, Tensor | int]


@dataclass(slots=True)
class StepOutput:
    """The result of `training_step`, `validation_step` or `test_step`.

    Attributes:
        loss: `[]`; the mean loss of the batch, or its **sum** where `num_items` is given. None only in evaluation.
        num_items: how many items (clips, frames, tokens, ...) `loss` sums over.
        metrics: name -> value of the batch, kept on the device: a mean, or a pair (sum, count).
        outputs: what callbacks may want to see of the model's answer; the trainer does not look at it.
    """

    loss: Tensor | None
    num_items: Tensor | int | None = None
    metrics: Mapping[str, MetricValue] = field(default_factory=dict)
    outputs: Any = None

    def without_weight(self) -> StepOutput:
        """The same graph counting for nothing: for a batch that only keeps the ranks in step."""
        assert self.loss is not None
        return StepOutput(self.loss * 0.0, None if self.num_items is None else 0)


def as_output(result: Any) -> StepOutput:
    """What a step returned, a loss or a StepOutput, as the latter."""
    return result if isinstance(result, StepOutput) else StepOutput(result)


class Window:
    """Counts the micro-steps and items of one update, and says by what its gradients must be multiplied."""

    def __init__(self, num_micro_steps: int, num_processes: int, device: torch.device, in_parts: bool = False) -> None:
        self._planned, self._num_processes, self._device = num_micro_steps, num_processes, device
        self._alone = num_micro_steps == 1 and num_processes == 1 and not in_parts
        self._taken = 0
        self._num_items: Tensor | int | None = None

    def weigh(self, output: StepOutput) -> Tensor:
        """The loss of a micro-step, `[]`, as it should go into backward."""
        loss, num_items = output.loss, output.num_items
        assert loss is not None, "a training step must return a loss"
        if num_items is None:
            return loss if self._planned == 1 else loss / self._planned
        if self._alone:  # nothing to wait for: divide the scalar and leave the gradients alone
            return loss / (num_items.clamp(min=1) if isinstance(num_items, Tensor) else max(num_items, 1))
        return loss

    def count(self, output: StepOutput) -> None:
        """Count a micro-step whose backward is done."""
        self._taken += 1
        if output.num_items is not None and not self._alone:
            self._num_items = output.num_items if self._num_items is None else self._num_items + output.num_items

    def close(self) -> Tensor | float | None:
        """End the window; return the factor for its gradients, None for 1. Collective over ranks with `num_items`."""
        taken, num_items = self._taken, self._num_items
        self._taken, self._num_items = 0, None
        if num_items is None:
            return None if taken == self._planned else self._planned / taken
        if self._num_processes == 1:
            return 1.0 / (num_items.clamp(min=1) if isinstance(num_items, Tensor) else max(num_items, 1))
        exact = torch.float32 if self._device.type == "mps" else torch.float64
        total = torch.as_tensor(num_items, dtype=exact, device=self._device).clone()
        torch.distributed.all_reduce(total)
        return self._num_processes / total.clamp(min=1)  # ranks were averaged: undo that


def scale_gradients(parameters: Iterable[Tensor], factor: Tensor | float) -> None:
    """Multiply every gradient by `factor`, in place."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if gradients:
        torch._foreach_mul_(gradients, factor)


def average_gradients(parameters: Iterable[Tensor], num_processes: int) -> None:
    """Average gradients over ranks in one flat all-reduce; parameters without a gradient count as zero."""
    parameters = [p for p in parameters if p.requires_grad]
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = [p.grad for p in parameters if p.grad is not None]
    dtype = torch.promote_types(gradients[0].dtype, torch.float32)
    flat = torch.cat([g.reshape(-1).to(dtype) for g in gradients])
    torch.distributed.all_reduce(flat)
    flat /= num_processes
    pieces = flat.split([g.numel() for g in gradients])
    torch._foreach_copy_(gradients, [piece.view_as(g) for piece, g in zip(pieces, gradients)])

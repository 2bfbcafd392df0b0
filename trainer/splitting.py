"""A batch that does not fit into memory is taken in halves, and these in halves again: `trainer.split_on_oom`.

A sum over a batch is the sum over its parts, so with `StepOutput(sum, num_items)` gradient and logged means are those
of the whole batch, up to rounding. Three things are not: a layer or loss that looks at the whole batch (batch
normalisation, contrastive losses) sees a part; dropout draws other masks; hooks around the backward run once a part.
What is repeated starts from the generators, buffers, gradients and meters that the failed attempt started from.

Other ranks go on: nothing is exchanged inside forward and backward, as the model is not wrapped in DDP; gradients are
averaged right before each update instead, and buffers are those of the first rank behind it. A step that itself talks
to other ranks must not be repeated by one of them.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from trainer.describe import in_words
from trainer.protection import is_out_of_memory
from trainer.random_state import load_rng_state, rng_state
from trainer.step import MetricValue, StepOutput
from utils.errors import UserError

if TYPE_CHECKING:
    from trainer.trainer import Trainer

logger = logging.getLogger(__name__)

_MEAN = (
    "trainer.split_on_oom: memory ran out, and a batch whose loss is a mean can not be split: let training_step return "
    "StepOutput(sum of the losses, num_items=how many), or use smaller batches"
)


def forward_backward(trainer: Trainer, batch: Any, batch_idx: int) -> StepOutput:
    """Forward and backward of a micro-step, in as few parts as memory asks for.

    Raises:
        UserError: it must be split, and its loss is a mean, or the batch nothing that can be cut.
        RuntimeError: not even one item fits; torch's own error.
    """
    outputs: list[StepOutput] = []
    left = [batch]
    while left:
        trainer.batch = part = left.pop(0)  # for whoever explains an error
        done = _attempt(trainer, part, batch_idx)
        if isinstance(done, StepOutput):
            if part is not batch and done.num_items is None:
                raise UserError(_MEAN)
            outputs.append(done)
        else:
            _free(trainer.device)
            logger.warning("update %d: out of memory, taken in halves: %s", trainer.global_step + 1, in_words(part))
            left[:0] = done
    trainer.batch = batch
    return outputs[0] if len(outputs) == 1 else _joined(outputs)


@torch.no_grad()
def share_buffers(module: torch.nn.Module) -> None:
    """Give every rank the first one's running statistics, as DDP does: one broadcast for each type of them."""
    by_type: dict[torch.dtype, list[Tensor]] = {}
    for buffer in module.buffers():
        by_type.setdefault(buffer.dtype, []).append(buffer)
    for buffers in by_type.values():
        flat = torch.cat([buffer.reshape(-1) for buffer in buffers])
        torch.distributed.broadcast(flat, src=0)
        for buffer, piece in zip(buffers, flat.split([buffer.numel() for buffer in buffers])):
            buffer.copy_(piece.view_as(buffer))


def _attempt(trainer: Trainer, part: Any, batch_idx: int) -> StepOutput | tuple[Any, Any]:
    """The output of a part; or, where memory ran out, its halves, and all as it was before."""
    before = _Before(trainer)
    try:
        (unit, output), *_ = trainer._outputs(part, batch_idx)
        output = trainer._backward(unit, output, part, batch_idx)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        parts = trainer.split_batch(part)
        if parts is None:
            raise
        before.restore()
        return parts  # tried out of this handler: the error holds on to the activations
    before.add_gradients()
    return output


class _Before:
    """What an attempt changes: gradients, which are set aside for it, buffers, meters and generators."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._parameters = list(trainer.unwrapped_model.parameters())
        self._gradients = [parameter.grad for parameter in self._parameters]
        for parameter in self._parameters:
            parameter.grad = None
        self._buffers = [(buffer, buffer.detach().clone()) for buffer in trainer.unwrapped_model.buffers()]
        self._meters = trainer._meters.state_dict()
        self._rng = rng_state()

    def add_gradients(self) -> None:
        """Add what was set aside to what the attempt has brought."""
        for parameter, gradient in zip(self._parameters, self._gradients):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else gradient.add_(parameter.grad)

    @torch.no_grad()
    def restore(self) -> None:
        for parameter, gradient in zip(self._parameters, self._gradients):
            parameter.grad = gradient
        for buffer, copy in self._buffers:
            buffer.copy_(copy)
        self._trainer._meters.load_state_dict(self._meters)
        load_rng_state(self._rng)


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _joined(outputs: list[StepOutput]) -> StepOutput:
    """The parts' outputs as one of the whole batch; sums stay on the device."""
    metrics: dict[str, MetricValue] = {}
    for output in outputs:
        for name, value in output.metrics.items():
            total, count = value if isinstance(value, tuple) else (value, 1)
            known = metrics.get(name, (0, 0))
            assert isinstance(known, tuple)
            metrics[name] = known[0] + total, known[1] + count
    losses: list[Any] = [output.loss for output in outputs]
    counts: list[Any] = [output.num_items for output in outputs]
    return StepOutput(sum(losses), sum(counts), metrics)


# --------------------------------------------------------------------------------------------------------------- halves


def halves(batch: Any) -> tuple[Any, Any] | None:
    """A batch cut in two along its first dimension; None where it is of one item.

    Args:
        batch: a tensor `[B, ...]`, or a mapping of tensors `[B, ...]`, lists of B members, and mappings of these. What
            has no length (`[]` tensors, numbers, strings, None) goes into both halves.

    Raises:
        UserError: it is nothing of the kind, or its members differ in length.
    """
    lengths = dict(_lengths(batch, "batch")) if isinstance(batch, (Mapping, Tensor)) else {}
    if not lengths or len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} {length}" for name, length in lengths.items()) or f"a {type(batch).__name__}"
        raise UserError(
            f"trainer.split_on_oom: memory ran out, and this batch can not be cut in two by itself (lengths: {told}): "
            "let the trainer have a split_batch(batch) that can, or use smaller batches"
        )
    (size,) = set(lengths.values())
    middle = (size + 1) // 2
    return (_cut(batch, slice(middle)), _cut(batch, slice(middle, size))) if size > 1 else None


def _lengths(value: Any, name: str) -> Iterator[tuple[str, int]]:
    if isinstance(value, Mapping):
        for key, member in value.items():
            yield from _lengths(member, str(key) if name == "batch" else f"{name}.{key}")
    elif _has_length(value):
        yield name, len(value)


def _cut(value: Any, piece: slice) -> Any:
    if isinstance(value, Mapping):
        return {key: _cut(member, piece) for key, member in value.items()}
    return value[piece] if _has_length(value) else value


def _has_length(value: Any) -> bool:
    return isinstance(value, (list, tuple)) or (isinstance(value, (Tensor, np.ndarray)) and value.ndim > 0)

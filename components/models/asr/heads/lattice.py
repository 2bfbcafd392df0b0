"""The transducer loss in bounded memory.

Shapes: B batch, T frames, U = N + 1 places around N tokens, J joint width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear
from torchaudio.functional import rnnt_loss


@dataclass(frozen=True)
class SubBatch:
    """Utterances whose lattices are computed together: their rows, and the longest of each length."""

    rows: Tensor
    num_frames: int
    num_tokens: int


def plan_sub_batches(lens: Tensor, token_lens: Tensor, vocab_size: int, max_joint_elements: int) -> list[SubBatch]:
    """Utterances of like size together, so that a sub-batch's `[b, T, U, V]` has at most `max_joint_elements`.

    One utterance that alone has more is a sub-batch by itself. Both lengths come to the host, once a batch.
    """
    sizes = torch.stack([lens.clamp(min=1), token_lens]).tolist()
    order = sorted(range(len(lens)), key=lambda row: (sizes[0][row], sizes[1][row]), reverse=True)
    plans: list[tuple[list[int], int, int]] = []
    for row in order:
        rows, num_frames, num_tokens = plans[-1] if plans else ([], 0, 0)
        num_frames, num_tokens = max(num_frames, sizes[0][row]), max(num_tokens, sizes[1][row])
        elements = (len(rows) + 1) * num_frames * (num_tokens + 1) * vocab_size
        if rows and elements <= max_joint_elements:
            plans[-1] = ([*rows, row], num_frames, num_tokens)
        else:
            plans.append(([row], sizes[0][row], sizes[1][row]))
    return [SubBatch(torch.tensor(rows, device=lens.device), *longest) for rows, *longest in plans]


def transducer_loss(
    frames: Tensor,
    predictions: Tensor,
    weight: Tensor,
    bias: Tensor,
    tokens: Tensor,
    lens: Tensor,
    token_lens: Tensor,
    blank_id: int = 0,
    max_joint_elements: int = 2**25,
) -> Tensor:
    """Minus log-probability of each utterance's tokens over all alignments (Graves 2012, arXiv:1211.3711, section 2.4).

    The lattice is `softmax(weight tanh(frames_t + predictions_u) + bias)`. It is made for a sub-batch at a time, in
    float32, and made again in the backward pass: never more than one sub-batch of it is in memory, and gradients are
    those of the whole.

    Args:
        frames: `[B, T, J]`.
        predictions: `[B, U, J]`.
        weight: `[V, J]`, and `bias [V]`.
        tokens: `[B, N]`; what lies behind `token_lens [B]` is not looked at.
        lens: `[B]`, frames; an utterance without any is taken to have one.
        max_joint_elements: of a sub-batch's logits; the peak is about three times that, in float32, where V exceeds J.

    Returns:
        `[B]`.
    """
    plan = plan_sub_batches(lens, token_lens, len(weight), max_joint_elements)
    lattice = [tensor.float() for tensor in (frames, predictions, weight, bias)]
    lengths = [tensor.to(torch.int32) for tensor in (tokens.clamp(min=0), lens.clamp(min=1), token_lens)]
    return _SubBatchedLoss.apply(*lattice, *lengths, plan, blank_id)


class _SubBatchedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, frames, predictions, weight, bias, tokens, lens, token_lens, plan, blank_id):
        ctx.save_for_backward(frames, predictions, weight, bias, tokens, lens, token_lens)
        ctx.plan, ctx.blank_id = plan, blank_id
        losses = frames.new_zeros(len(frames))
        for part in plan:
            lattice = _cut(part, frames, predictions)
            losses[part.rows] = _loss(part, *lattice, weight, bias, tokens, lens, token_lens, blank_id)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        frames, predictions, weight, bias, *targets = ctx.saved_tensors
        grads = [torch.zeros_like(tensor) for tensor in (frames, predictions, weight, bias)]
        for part in ctx.plan:
            inputs = [x.detach().requires_grad_() for x in (*_cut(part, frames, predictions), weight, bias)]
            with torch.enable_grad():
                losses = _loss(part, *inputs, *targets, ctx.blank_id)
            of_frames, of_predictions, *of_output = torch.autograd.grad(losses, inputs, grad[part.rows])
            grads[0][part.rows, : part.num_frames] = of_frames
            grads[1][part.rows, : part.num_tokens + 1] = of_predictions
            for whole, piece in zip(grads[2:], of_output):
                whole += piece
        return (*grads, None, None, None, None, None)


def _cut(part: SubBatch, frames: Tensor, predictions: Tensor) -> tuple[Tensor, Tensor]:
    return frames[part.rows, : part.num_frames], predictions[part.rows, : part.num_tokens + 1]


def _loss(
    part: SubBatch,
    frames: Tensor,
    predictions: Tensor,
    weight: Tensor,
    bias: Tensor,
    tokens: Tensor,
    lens: Tensor,
    token_lens: Tensor,
    blank_id: int,
) -> Tensor:
    with torch.autocast(frames.device.type, enabled=False):
        joint = torch.tanh(frames.unsqueeze(2) + predictions.unsqueeze(1))
        logits = linear(joint, weight, bias)
    targets = tokens[part.rows, : part.num_tokens].contiguous()
    return rnnt_loss(logits, targets, lens[part.rows], token_lens[part.rows], blank=blank_id, reduction="none")

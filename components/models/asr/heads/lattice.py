"""The transducer loss in bounded memory.

Shapes: B batch, T frames, U = N + 1 places around N tokens, J joint width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear, pad
from torchaudio.functional import rnnt_loss

_IMPOSSIBLE = -1e4  # a logit; torchaudio's loss makes NaN of -inf


@dataclass(frozen=True)
class SubBatch:
    """Utterances whose lattices are computed together: their rows, and the largest of each size.

    Attributes:
        rows: in the batch.
        num_steps: rows of a lattice: T, and T - N + 1 of a monotonic one.
        num_tokens: N.
    """

    rows: Tensor
    num_steps: int
    num_tokens: int


def plan_sub_batches(steps: Tensor, token_lens: Tensor, vocab_size: int, max_joint_elements: int) -> list[SubBatch]:
    """Utterances of like size together, so that a sub-batch's `[b, steps, U, V]` has at most `max_joint_elements`.

    One utterance that alone has more is a sub-batch by itself. Both lengths come to the host, once a batch.
    """
    sizes = torch.stack([steps, token_lens]).tolist()
    order = sorted(range(len(steps)), key=lambda row: (sizes[0][row], sizes[1][row]), reverse=True)
    plans: list[tuple[list[int], int, int]] = []
    for row in order:
        rows, num_steps, num_tokens = plans[-1] if plans else ([], 0, 0)
        num_steps, num_tokens = max(num_steps, sizes[0][row]), max(num_tokens, sizes[1][row])
        elements = (len(rows) + 1) * num_steps * (num_tokens + 1) * vocab_size
        if rows and elements <= max_joint_elements:
            plans[-1] = ([*rows, row], num_steps, num_tokens)
        else:
            plans.append(([row], sizes[0][row], sizes[1][row]))
    return [SubBatch(torch.tensor(rows, device=steps.device), *largest) for rows, *largest in plans]


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
    monotonic: bool = False,
) -> Tensor:
    """Minus log-probability of each utterance's tokens over all alignments (Graves 2012, arXiv:1211.3711, section 2.4).

    In a `monotonic` one every symbol, and not only the blank, leads to the next frame (Tripathi et al. 2019,
    doi:10.1109/ASRU46091.2019.9003822). It is computed as one of Graves': its step s with u tokens said stands at frame
    s + u, and behind the last frame there is nothing but a blank.

    The lattice is `softmax(weight tanh(frames_t + predictions_u) + bias)`. It is made for a sub-batch at a time, in
    float32, and made again in the backward pass: never more than one sub-batch of it is in memory, and gradients are
    those of the whole.

    Args:
        frames: `[B, T, J]`.
        predictions: `[B, U, J]`.
        weight: `[V, J]`, and `bias [V]`.
        tokens: `[B, N]`; what lies behind `token_lens [B]` is not looked at.
        lens: `[B]`, frames; an utterance with too few for any alignment is taken to have the fewest.
        max_joint_elements: of a sub-batch's logits; the peak is about three times that, in float32, where V exceeds J.

    Returns:
        `[B]`.
    """
    steps = (lens - token_lens + 1 if monotonic else lens).clamp(min=1)
    plan = plan_sub_batches(steps, token_lens, len(weight), max_joint_elements)
    lattice = [tensor.float() for tensor in (frames, predictions, weight, bias)]
    targets = [tensor.to(torch.int32) for tensor in (tokens.clamp(min=0), steps, token_lens)]
    return _SubBatchedLoss.apply(*lattice, *targets, plan, blank_id, monotonic)


class _SubBatchedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, frames, predictions, weight, bias, tokens, steps, token_lens, plan, blank_id, monotonic):
        ctx.save_for_backward(frames, predictions, weight, bias, tokens, steps, token_lens)
        ctx.plan, ctx.options = plan, (blank_id, monotonic)
        losses = frames.new_zeros(len(frames))
        for part in plan:
            lattice = _cut(part, frames, predictions, monotonic)
            losses[part.rows] = _loss(part, *lattice, weight, bias, tokens, steps, token_lens, *ctx.options)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        frames, predictions, weight, bias, *targets = ctx.saved_tensors
        grads = [torch.zeros_like(tensor) for tensor in (frames, predictions, weight, bias)]
        for part in ctx.plan:
            lattice = _cut(part, frames, predictions, ctx.options[1])
            inputs = [tensor.detach().requires_grad_() for tensor in (*lattice, weight, bias)]
            with torch.enable_grad():
                losses = _loss(part, *inputs, *targets, *ctx.options)
            of_lattice = torch.autograd.grad(losses, inputs, grad[part.rows])
            for whole, piece in zip(grads[:2], of_lattice):
                whole[part.rows, : piece.shape[1]] = piece
            for whole, piece in zip(grads[2:], of_lattice[2:]):
                whole += piece
        return (*grads, *[None] * 6)


def _cut(part: SubBatch, frames: Tensor, predictions: Tensor, monotonic: bool) -> tuple[Tensor, Tensor]:
    num_frames = part.num_steps + part.num_tokens - 1 if monotonic else part.num_steps
    return frames[part.rows, :num_frames], predictions[part.rows, : part.num_tokens + 1]


def _loss(
    part: SubBatch,
    frames: Tensor,
    predictions: Tensor,
    weight: Tensor,
    bias: Tensor,
    tokens: Tensor,
    steps: Tensor,
    token_lens: Tensor,
    blank_id: int,
    monotonic: bool,
) -> Tensor:
    steps, token_lens = steps[part.rows], token_lens[part.rows]
    if monotonic:
        reach = part.num_steps + part.num_tokens  # one more than there are frames
        frames = pad(frames, (0, 0, 0, reach - frames.shape[1])).unfold(1, part.num_tokens + 1, 1).transpose(2, 3)
    else:
        frames = frames.unsqueeze(2)
    with torch.autocast(frames.device.type, enabled=False):
        logits = linear(torch.tanh(frames + predictions.unsqueeze(1)), weight, bias)
    if monotonic:
        logits = _silent_behind(logits, steps + token_lens - 1, blank_id)
    targets = tokens[part.rows, : part.num_tokens].contiguous()
    return rnnt_loss(logits, targets, steps, token_lens, blank=blank_id, reduction="none")


def _silent_behind(logits: Tensor, lens: Tensor, blank_id: int) -> Tensor:
    """`[b, steps, U, V]` where places from frame `lens [b]` on have the blank for certain."""
    step, place = (torch.arange(size, device=lens.device) for size in logits.shape[1:3])
    behind = step.unsqueeze(1) + place >= lens.view(-1, 1, 1)
    blank = torch.arange(logits.shape[3], device=lens.device) == blank_id
    certain = torch.where(blank, 0.0, _IMPOSSIBLE)
    return torch.where(behind.unsqueeze(-1), certain, logits)

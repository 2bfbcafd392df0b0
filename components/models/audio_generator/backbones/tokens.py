"""Latent frames folded into tokens.  Shapes: B batch, L frames, N tokens, D latent, P patch size."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import pad


def fold_frames(frames: Tensor, patch_size: int, padding_mask: Tensor | None = None) -> Tensor:
    """`[B, L, D]` to tokens `[B, ceil(L / P), P D]` of P frames each.

    Frames where `padding_mask [B, L]` is True, and those missing to the last token, are zeros: a token that is part
    padding is the same in any batch.
    """
    if padding_mask is not None:
        frames = frames.masked_fill(padding_mask.unsqueeze(-1), 0)
    if patch_size == 1:
        return frames
    return pad(frames, (0, 0, 0, -frames.shape[1] % patch_size)).unflatten(1, (-1, patch_size)).flatten(2)


def unfold_frames(tokens: Tensor, patch_size: int, num_frames: int, padding_mask: Tensor | None = None) -> Tensor:
    """The way back: `[B, N, P D]` to `[B, num_frames, D]`, zero where `padding_mask [B, num_frames]` is True."""
    frames = tokens.unflatten(2, (patch_size, -1)).flatten(1, 2)[:, :num_frames]
    return frames if padding_mask is None else frames.masked_fill(padding_mask.unsqueeze(-1), 0)


def token_padding(padding_mask: Tensor | None, patch_size: int) -> Tensor | None:
    """`[B, L]` to `[B, ceil(L / P)]`: a token is padding when all of its frames are; None stays None."""
    if padding_mask is None or patch_size == 1:
        return padding_mask
    missing = -padding_mask.shape[1] % patch_size
    return pad(padding_mask, (0, missing), value=True).unflatten(1, (-1, patch_size)).all(-1)

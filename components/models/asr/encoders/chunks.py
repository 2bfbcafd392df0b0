"""How an encoder cuts time into chunks."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from utils.errors import UserError

LONGEST = 25  # output frames of a random chunk: a second at 40 ms
_WHOLE = 0.5  # share of the batches that are not cut at all


@dataclass(frozen=True)
class Chunks:
    """A size for evaluation and streaming, and random ones for training, so that one model serves any (U2: Zhang et al.
    2020, arXiv:2012.05481, 3.2).

    Args:
        frames: output frames of a chunk; None: the whole clip is one.
        left: chunks before its own that a frame sees; None: all.
        random: in training, half of the batches are whole, and the others cut into chunks of 1 to 25 frames, each with
            the same chance, that see all that was before.

    Raises:
        UserError: a size is not positive.
    """

    frames: int | None
    left: int | None
    random: bool

    def __post_init__(self) -> None:
        if self.frames is not None and self.frames < 1:
            raise UserError(f"chunk_frames must be at least 1, got {self.frames}")
        if self.left is not None and (self.left < 0 or self.frames is None):
            raise UserError("left_chunks: a number of chunks from 0, and only with chunk_frames")

    @property
    def in_use(self) -> bool:
        """Whether anything is ever cut."""
        return self.random or self.frames is not None

    def draw(self, training: bool) -> tuple[int, int | None] | None:
        """`(frames, left)` of a batch; random numbers come from the CPU, so that no device is waited for."""
        if not (training and self.random):
            return None if self.frames is None else (self.frames, self.left)
        whole, frames = torch.rand(2).tolist()
        return None if whole < _WHOLE else (1 + int(frames * LONGEST), None)

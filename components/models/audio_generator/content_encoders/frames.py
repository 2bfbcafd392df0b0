"""Conditions frame by frame.  Shapes: B batch, T samples, L frames, F features, D latent, E width."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from components.models.audio_generator.autoencoders import Autoencoder
from components.models.audio_generator.conditions import Stream
from components.models.audio_generator.content_encoders.base import ContentEncoder, zero_behind
from components.models.audio_generator.content_encoders.symbols import full_lens
from utils.errors import UserError


class FrameEncoder(ContentEncoder):
    """Curves or precomputed features (pitch, energy, a video's) through convolutions, at their own frame rate.

    Args:
        num_features: F.
        embed_dim: E.
        num_layers: 1 is a linear map where `kernel_size` is 1.
        kernel_size: frames that each layer sees; odd.

    Raises:
        UserError: the kernel is even.
    """

    def __init__(self, num_features: int, embed_dim: int = 64, num_layers: int = 1, kernel_size: int = 1) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise UserError(f"kernel_size must be odd, got {kernel_size}")
        self.embed_dim = embed_dim
        widths = [num_features] + num_layers * [embed_dim]
        self.layers = nn.ModuleList(
            nn.Conv1d(before, after, kernel_size, padding=kernel_size // 2) for before, after in pairwise(widths)
        )

    def forward(self, entry: Tensor, lens: Tensor | None = None, **fields: Any) -> Stream:
        """`[B, L, F]`, or `[B, L]` where F is 1, with `lens [B]` (None: all of L) to `[B, L, E]`."""
        x = entry if entry.ndim == 3 else entry.unsqueeze(-1)
        lens = full_lens(x) if lens is None else lens
        x = zero_behind(x.to(self.layers[0].weight.dtype), lens)
        for i, layer in enumerate(self.layers):
            x = layer(silu(x).transpose(1, 2) if i else x.transpose(1, 2)).transpose(1, 2)
            x = zero_behind(x, lens)
        return Stream(x, lens)


class LatentEncoder(ContentEncoder):
    """A recording as the latents of an autoencoder, projected: what is to be enhanced, continued or sung like.

    The autoencoder is not learned here and is no part of this module: neither its parameters nor its state are this
    encoder's, so a model can share the one that makes its targets.

    Args:
        autoencoder: given by the model that has it.
        embed_dim: E.
    """

    def __init__(self, autoencoder: Autoencoder, embed_dim: int = 64) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self._shared = (autoencoder,)  # a tuple hides it from the list of submodules
        self.projection = nn.Linear(autoencoder.latent_dim, embed_dim)

    def forward(self, entry: Tensor, lens: Tensor | None = None, **fields: Any) -> Stream:
        """Waveforms `[B, 1, T]` with `lens [B]` (None: all of T) to `[B, L, E]`, L the autoencoder's frames."""
        lens = full_lens(entry.transpose(1, 2)) if lens is None else lens
        with torch.no_grad():
            latents, latent_lens = self._shared[0].encode(entry, lens)
        return Stream(zero_behind(self.projection(latents), latent_lens), latent_lens)

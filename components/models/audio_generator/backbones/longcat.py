"""diffusers' LongCat transformer as a backbone.  Shapes: B batch, L frames, N tokens, S sequence, P patch size."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from components.layers import rotary_tables
from components.models.audio_generator.backbones.checks import check_conditions
from components.models.audio_generator.backbones.tokens import fold_frames, token_padding, unfold_frames
from components.models.audio_generator.conditions import Conditions
from utils.errors import UserError


class UncachedRotary(nn.Module):
    """The angles of LongCat's `rotary_embed`, made anew: the library's cache outlives the inference mode it is filled
    in, and training after that fails."""

    def __init__(self, dim: int, base: float = 100_000.0) -> None:
        super().__init__()
        self.dim, self.base = dim, base

    def forward(self, hidden_states: Tensor, seq_len: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines `[seq_len, dim]` in the type of `hidden_states`."""
        cos, sin = rotary_tables(seq_len, self.dim, hidden_states.device, self.base)
        return cos.to(hidden_states.dtype), sin.to(hidden_states.dtype)


class LongCatBackbone(nn.Module):
    """`diffusers.LongCatAudioDiTTransformer` in our conventions: for padded batches.

    Audio and sequence are truly masked. There is no place for a vector: it becomes a first token of the sequence, whose
    mean modulates the blocks. Aligned conditions are projected to the width of the latents, which the library demands.

    Args:
        latent_dim: of a frame.
        vector_dim, sequence_dim, aligned_dim: widths of the conditions; 0 for those that there are not.
        transformer: makes the library's model from the widths that are known here.
        patch_size: P, frames folded into a token.

    Raises:
        UserError: the model has convolutions over the text, which see its padding.
    """

    def __init__(
        self,
        latent_dim: int,
        vector_dim: int = 0,
        sequence_dim: int = 0,
        aligned_dim: int = 0,
        *,
        transformer: Callable[..., nn.Module],
        patch_size: int = 1,
    ) -> None:
        super().__init__()
        self.condition_dims = (vector_dim, sequence_dim, aligned_dim)
        self.patch_size = patch_size
        text_dim, token_dim = sequence_dim or vector_dim or 1, patch_size * latent_dim
        self.transformer = transformer(
            latent_dim=token_dim, dit_text_dim=text_dim, use_latent_condition=bool(aligned_dim)
        )
        if self.transformer.config.text_conv:
            raise UserError(
                "model.backbone.transformer.text_conv: the convolutions of LongCat over the text see its padding, so "
                "that an item's result depends on its batch; set it to false"
            )
        self.transformer.rotary_embed = UncachedRotary(self.transformer.rotary_embed.dim)
        self.vector = nn.Linear(vector_dim, text_dim) if vector_dim else None
        self.aligned = nn.Linear(patch_size * aligned_dim, token_dim) if aligned_dim else None
        self.no_sequence = None if sequence_dim or vector_dim else nn.Parameter(torch.zeros(text_dim))

    def gradient_checkpointing_enable(self) -> None:
        """Recompute each block in the backward pass, which the library does not offer."""
        for block in self.transformer.blocks:
            block.forward = partial(_recomputed, block)

    def forward(self, x_t: Tensor, t: Tensor, conditions: Conditions, padding_mask: Tensor | None = None) -> Tensor:
        """`x_t [B, L, latent_dim]`, `t [B]` in [0, 1], `padding_mask [B, L]` to a velocity `[B, L, latent_dim]`.

        Raises:
            UserError: the conditions have not the widths that this was built with.
        """
        check_conditions(conditions, *self.condition_dims)
        sequence, real = self._sequence(conditions, len(x_t))
        token_mask = token_padding(padding_mask, self.patch_size)
        aligned = conditions.aligned
        if aligned is not None:
            aligned = self.aligned(fold_frames(aligned, self.patch_size, padding_mask))
        noise_minus_data = self.transformer(
            fold_frames(x_t, self.patch_size, padding_mask),
            encoder_hidden_states=sequence,
            encoder_attention_mask=real,
            timestep=1 - t,  # sigma
            attention_mask=None if token_mask is None else ~token_mask,
            latent_cond=aligned,
            return_dict=False,
        )[0]
        return -unfold_frames(noise_minus_data, self.patch_size, x_t.shape[1], padding_mask)

    def _sequence(self, conditions: Conditions, batch_size: int) -> tuple[Tensor, Tensor]:
        """The sequence with the vector in front `[B, S, E]`, and which places are real `[B, S]`."""
        tokens, real = [], []
        if self.no_sequence is not None:
            tokens.append(self.no_sequence.expand(batch_size, 1, -1))
        if self.vector is not None:
            tokens.append(self.vector(conditions.vector).unsqueeze(1))
        if conditions.sequence is not None:
            tokens.append(conditions.sequence)
        for values in tokens:
            real.append(torch.ones(values.shape[:2], dtype=torch.bool, device=values.device))
        if conditions.sequence_padding_mask is not None:
            real[-1] = ~conditions.sequence_padding_mask
        return torch.cat(tokens, dim=1), torch.cat(real, dim=1)


def _recomputed(block: nn.Module, **arguments: Tensor) -> Tensor:
    forward = type(block).forward
    if not block.training:
        return forward(block, **arguments)
    return checkpoint(forward, block, use_reentrant=False, **arguments)

"""diffusers' Stable Audio 3 transformer as a backbone.  Shapes: B batch, L frames, S sequence, P patch size."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn.functional import pad

from components.models.audio_generator.backbones.checks import check_conditions
from components.models.audio_generator.backbones.tokens import fold_frames, unfold_frames
from components.models.audio_generator.conditions import Conditions
from utils.errors import UserError


class NoAttention(nn.Module):
    """In the place of an attention to nothing."""

    def forward(self, hidden_states: Tensor, context: Tensor, context_mask: Tensor | None = None) -> Tensor:
        """Zero, for any `[B, N, D]`."""
        return hidden_states.new_zeros(())


class StableAudio3Backbone(nn.Module):
    """`diffusers.StableAudio3DiTModel` in our conventions: for clips of one length.

    It has no mask for padded frames, and attends to padded places of the sequence as to a learned vector. So latents
    must fill their canvas, and the sequence is always brought to `context_len` places: an item's result does not depend
    on its batch. Frames are folded into tokens here, as the library refuses aligned conditions with its own patches.
    Its output projection starts at zero, which the library leaves to a checkpoint.

    Args:
        latent_dim: of a frame.
        vector_dim, sequence_dim, aligned_dim: widths of the conditions; 0 for those that there are not.
        transformer: makes the library's model from the widths that are known here.
        patch_size: P, frames folded into a token.
        context_len: places for the sequence.
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
        context_len: int = 64,
    ) -> None:
        super().__init__()
        self.condition_dims = (vector_dim, sequence_dim, aligned_dim)
        self.patch_size = patch_size
        self.context_len = context_len
        self.transformer = transformer(
            io_channels=patch_size * latent_dim,
            patch_size=1,
            cond_token_dim=sequence_dim or 1,
            global_cond_dim=vector_dim or 1,
            local_add_cond_dim=patch_size * aligned_dim or 1,
        )
        nn.init.zeros_(self.transformer.proj_out.weight)
        self._leave_out_what_is_not_used()

    def _leave_out_what_is_not_used(self) -> None:
        """Parameters without a gradient would stop distributed training."""
        vector_dim, sequence_dim, aligned_dim = self.condition_dims
        if not vector_dim:
            self.transformer.to_global_embed = nn.Identity()
        if not sequence_dim:
            self.transformer.to_cond_embed = nn.Identity()
            self.transformer.prompt_padding_embedding.requires_grad_(False)
        for block in self.transformer.transformer_blocks:
            if not sequence_dim:
                block.cross_attend_norm, block.cross_attn = nn.Identity(), NoAttention()
            if not aligned_dim:
                block.to_local_embed = nn.Identity()

    def gradient_checkpointing_enable(self) -> None:
        """Recompute each block in the backward pass instead of keeping what is inside it."""
        self.transformer.enable_gradient_checkpointing()

    def forward(self, x_t: Tensor, t: Tensor, conditions: Conditions, padding_mask: Tensor | None = None) -> Tensor:
        """`x_t [B, L, latent_dim]`, `t [B]` in [0, 1] to a velocity `[B, L, latent_dim]`.

        Raises:
            UserError: there is a padding mask, the sequence is longer than `context_len`, or the conditions have not
                the widths that this was built with.
        """
        if padding_mask is not None:
            raise UserError(
                "the backbone stable_audio_3 has no mask for padding: give it clips of one length, filled up with "
                "silence, and set model.is_full=true, or take one that masks (model/backbone=dit or longcat)"
            )
        check_conditions(conditions, *self.condition_dims)
        sequence, real = self._context(conditions, x_t)
        vector = x_t.new_zeros(len(x_t), 1) if conditions.vector is None else conditions.vector
        aligned = conditions.aligned
        noise_minus_data = self.transformer(
            fold_frames(x_t, self.patch_size).transpose(1, 2),
            timestep=1 - t,  # sigma
            encoder_hidden_states=sequence,
            global_hidden_states=vector,
            encoder_attention_mask=real,
            local_add_cond=None if aligned is None else fold_frames(aligned, self.patch_size).transpose(1, 2),
            return_dict=False,
        )[0]
        return -unfold_frames(noise_minus_data.transpose(1, 2), self.patch_size, x_t.shape[1])

    def _context(self, conditions: Conditions, like: Tensor) -> tuple[Tensor, Tensor | None]:
        """The sequence on its `context_len` places, and which of these are real, `[B, context_len]`."""
        sequence, padding = conditions.sequence, conditions.sequence_padding_mask
        if sequence is None:
            return like.new_zeros(len(like), 1, 1), None
        missing = self.context_len - sequence.shape[1]
        if missing < 0:
            raise UserError(
                f"the sequence of conditions has {sequence.shape[1]} places and the backbone stable_audio_3 "
                f"{self.context_len}: raise model.backbone.context_len or shorten the text"
            )
        real = sequence.new_ones(sequence.shape[:2]).bool() if padding is None else ~padding
        return pad(sequence, (0, 0, 0, missing)), pad(real, (0, missing))

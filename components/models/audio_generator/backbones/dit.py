"""A masked diffusion transformer.  Shapes: B batch, L frames, N tokens, S sequence, P patch size, D model.

After DiT (Peebles & Xie 2023, arXiv:2212.09748), with one modulation for all blocks plus a bias of each (adaLN-single,
Chen et al. 2023, arXiv:2310.00426), cross-attention, rotary positions, normalised queries and keys, and long skips
(U-ViT, Bao et al. 2023, arXiv:2209.12152). Everything a condition adds starts at zero, and so does the output.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import silu
from torch.utils.checkpoint import checkpoint

from components.layers import Attention, FeedForward, TimeEmbedding, adaptive_layer_norm, rotary_tables
from components.models.audio_generator.backbones.checks import check_conditions
from components.models.audio_generator.backbones.tokens import fold_frames, token_padding, unfold_frames
from components.models.audio_generator.conditions import Conditions
from utils.errors import UserError


class DitBlock(nn.Module):
    """Self-attention, cross-attention, a sum with what is aligned, and a per-token network.

    Args:
        dim: D.
        num_heads: of both attentions.
        mlp_ratio, gated_mlp: of the per-token network.
        sequence_dim: width of what is cross-attended; 0 for none.
        aligned_dim: width of what is added token by token; 0 for none.
    """

    def __init__(
        self, dim: int, num_heads: int, mlp_ratio: float, gated_mlp: bool, sequence_dim: int, aligned_dim: int
    ) -> None:
        super().__init__()
        self.modulation_bias = nn.Parameter(torch.zeros(6 * dim))
        self.attention = Attention(dim, num_heads)
        self.cross_norm = nn.LayerNorm(dim) if sequence_dim else None
        self.cross_attention = Attention(dim, num_heads, sequence_dim) if sequence_dim else None
        self.aligned = nn.Linear(aligned_dim, dim, bias=False) if aligned_dim else None
        self.mlp = FeedForward(dim, mlp_ratio, gated_mlp)

    def forward(
        self,
        x: Tensor,
        modulation: Tensor,
        rotary: tuple[Tensor, Tensor],
        padding_mask: Tensor | None,
        sequence: Tensor | None,
        sequence_padding_mask: Tensor | None,
        aligned: Tensor | None,
    ) -> Tensor:
        """`x [B, N, D]`, `modulation [B, 1, 6 D]`, masks `[B, N]` and `[B, S]`, to `[B, N, D]`."""
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = (modulation + self.modulation_bias).chunk(6, dim=-1)
        normed = adaptive_layer_norm(x, shift_1, scale_1)
        x = x + gate_1 * self.attention(normed, padding_mask=padding_mask, rotary=rotary)
        if self.cross_attention is not None:
            x = x + self.cross_attention(self.cross_norm(x), sequence, sequence_padding_mask)
        if self.aligned is not None:
            x = x + self.aligned(aligned)
        return x + gate_2 * self.mlp(adaptive_layer_norm(x, shift_2, scale_2))


def sinusoids(num_tokens: int, dim: int, device: torch.device) -> Tensor:
    """Sines and cosines of positions, of periods from 2 pi to 20 000 pi (Vaswani et al. 2017, 3.5): `[N, dim]`."""
    frequencies = torch.exp(torch.arange(0, dim, 2, device=device) * (-math.log(10_000) / dim))
    angles = torch.arange(num_tokens, device=device).unsqueeze(1) * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class Dit(nn.Module):
    """Noisy latents, a time and conditions to a velocity; padding is never seen, and comes out as zeros.

    Args:
        latent_dim: of a frame.
        vector_dim, sequence_dim, aligned_dim: widths of the conditions; 0 for those that there are not.
        dim: D.
        depth: number of blocks.
        num_heads: of each attention.
        patch_size: P, frames folded into a token.
        mlp_ratio: hidden width of the per-token network over D.
        gated_mlp: let the per-token network be gated.
        aligned_fusion: `layer` adds time-aligned conditions in every block, `input` concatenates them to the latents.
        long_skips: lead the first blocks' outputs to the last, in pairs.
        absolute_positions: tell each token where it lies from the start, beside the rotary distances: on a canvas of
            one length a sound has its place, which distances alone do not tell.

    Raises:
        UserError: `aligned_fusion` is neither, or the heads do not divide `dim` into even widths.
    """

    def __init__(
        self,
        latent_dim: int,
        vector_dim: int = 0,
        sequence_dim: int = 0,
        aligned_dim: int = 0,
        dim: int = 128,
        depth: int = 4,
        num_heads: int = 4,
        patch_size: int = 1,
        mlp_ratio: float = 4.0,
        gated_mlp: bool = False,
        aligned_fusion: Literal["layer", "input"] = "layer",
        long_skips: bool = False,
        absolute_positions: bool = False,
    ) -> None:
        super().__init__()
        if aligned_fusion not in ("layer", "input"):
            raise UserError(f"aligned_fusion must be 'layer' or 'input', got {aligned_fusion!r}")
        if dim % (2 * num_heads):
            raise UserError(f"dim={dim} must be a multiple of 2 x num_heads={num_heads}")
        self.condition_dims = (vector_dim, sequence_dim, aligned_dim)
        self.patch_size, self.head_dim, self.aligned_fusion = patch_size, dim // num_heads, aligned_fusion
        added, joined = (aligned_dim, 0) if aligned_fusion == "layer" else (0, aligned_dim)
        self.input = nn.Linear(patch_size * (latent_dim + joined), dim)
        self.position = nn.Linear(dim, dim, bias=False) if absolute_positions else None
        self.time = TimeEmbedding(dim)
        self.vector = nn.Linear(vector_dim, dim) if vector_dim else None
        self.sequence_norm = nn.LayerNorm(sequence_dim) if sequence_dim else None
        self.modulation = nn.Linear(dim, 6 * dim)
        self.blocks = nn.ModuleList(
            DitBlock(dim, num_heads, mlp_ratio, gated_mlp, sequence_dim, patch_size * added) for _ in range(depth)
        )
        self.merges = nn.ModuleList(nn.Linear(2 * dim, dim) for _ in range(depth // 2 if long_skips else 0))
        self.output_modulation = nn.Linear(dim, 2 * dim)
        self.output = nn.Linear(dim, patch_size * latent_dim)
        self.gradient_checkpointing = False
        self._initialize()

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        zeros = [self.modulation, self.output_modulation, self.output]
        zeros += [block.cross_attention.out for block in self.blocks if block.cross_attention is not None]
        zeros += [block.aligned for block in self.blocks if block.aligned is not None]
        for module in zeros:
            nn.init.zeros_(module.weight)
        for merge in self.merges:  # at first the skip is not taken
            nn.init.eye_(merge.weight)

    def gradient_checkpointing_enable(self) -> None:
        """Recompute each block in the backward pass instead of keeping what is inside it."""
        self.gradient_checkpointing = True

    def forward(self, x_t: Tensor, t: Tensor, conditions: Conditions, padding_mask: Tensor | None = None) -> Tensor:
        """`x_t [B, L, latent_dim]`, `t [B]` in [0, 1], `padding_mask [B, L]` to a velocity `[B, L, latent_dim]`.

        Raises:
            UserError: the conditions have not the widths that this was built with.
        """
        check_conditions(conditions, *self.condition_dims)
        aligned, sequence = conditions.aligned, conditions.sequence
        if aligned is not None and self.aligned_fusion == "input":
            frames = torch.cat([x_t, aligned.to(x_t.dtype)], dim=-1)
        else:
            frames = x_t
        x = self.input(fold_frames(frames, self.patch_size, padding_mask))
        if self.position is not None:
            x = x + self.position(sinusoids(x.shape[1], x.shape[2], x.device).to(x.dtype))
        if aligned is not None:
            aligned = fold_frames(aligned, self.patch_size, padding_mask)
        if sequence is not None:
            sequence = self.sequence_norm(sequence)
        condition = self.time(t) if self.vector is None else self.time(t) + self.vector(conditions.vector)
        condition = silu(condition).unsqueeze(1)
        shared = (
            self.modulation(condition),
            rotary_tables(x.shape[1], self.head_dim, x.device),
            token_padding(padding_mask, self.patch_size),
            sequence,
            conditions.sequence_padding_mask,
            aligned,
        )
        x = self._run_blocks(x, *shared)
        x = self.output(adaptive_layer_norm(x, *self.output_modulation(condition).chunk(2, dim=-1)))
        return unfold_frames(x, self.patch_size, x_t.shape[1], padding_mask)

    def _run_blocks(self, x: Tensor, *shared: Tensor | tuple[Tensor, Tensor] | None) -> Tensor:
        num_skips, skips = len(self.merges), []
        for i, block in enumerate(self.blocks):
            if (behind := i - len(self.blocks) + num_skips) >= 0:
                x = self.merges[behind](torch.cat([x, skips.pop()], dim=-1))
            if self.gradient_checkpointing and self.training:
                x = checkpoint(block, x, *shared, use_reentrant=False)
            else:
                x = block(x, *shared)
            if i < num_skips:
                skips.append(x)
        return x

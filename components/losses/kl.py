"""Divergence of a posterior.  Shapes: B batch, L frames, D latent."""

from __future__ import annotations

from torch import Tensor

from components.layers import length_mask


def gaussian_kl(mean: Tensor, std: Tensor, lens: Tensor) -> Tensor:
    """Divergence of N(mean, std^2) from N(0, 1) in nats per frame, `[B, L, D]` with `lens [B]` to `[B]`.

    Summed over D and averaged over a clip's own frames (Kingma & Welling 2014, arXiv:1312.6114, appendix B). What
    diffusers' `latent_dist.kl()` gives is twice this.
    """
    per_frame = 0.5 * (mean.square() + std.square() - 1).sum(-1) - std.log().sum(-1)
    inside = length_mask(lens, per_frame.shape[1])
    return per_frame.masked_fill(~inside, 0).sum(1) / lens.clamp(min=1)

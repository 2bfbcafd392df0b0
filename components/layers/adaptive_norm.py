"""Normalisation that a condition scales and shifts.  Shapes: B batch, L frames, D model."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import layer_norm


def adaptive_layer_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """`x [B, L, D]` normalised over D, times `1 + scale`, plus `shift`, both `[B, 1, D]`; 0 and 0 change nothing.

    AdaLN (Perez et al. 2018, arXiv:1709.07871; Peebles & Xie 2023, arXiv:2212.09748).
    """
    return layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift

"""Random numbers as a function of a clip's seed: the same on every device, alone and in any batch.  Shapes: B batch."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor


def _logical_shift(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def hash_uniform(seed: Tensor, num_draws: int) -> Tensor:
    """Uniform numbers in [0, 1) that depend on nothing but (seed, draw); int64 `[B]` to float32 `[B, num_draws]`.

    The finaliser of splitmix64 (Steele et al. 2014) over counters: no generator state, the same on every device.
    """
    counter = torch.arange(1, num_draws + 1, device=seed.device, dtype=torch.int64)
    x = seed.unsqueeze(1) + counter * -0x61C8864680B583EB  # wraps around, as intended
    x = (x ^ _logical_shift(x, 30)) * -0x40A7B892E31B1A47
    x = (x ^ _logical_shift(x, 27)) * -0x6B2FB644ECCEEE15
    x = x ^ _logical_shift(x, 31)
    return _logical_shift(x, 40).float() / (1 << 24)


def hash_normal(seed: Tensor, num_draws: int) -> Tensor:
    """Standard normal numbers that depend on nothing but (seed, draw), int64 `[B]` to float32 `[B, num_draws]`.

    The method of Box and Muller (1958) on `hash_uniform`.
    """
    uniform = hash_uniform(seed, num_draws + num_draws % 2).unflatten(1, (-1, 2))
    radius = torch.sqrt(-2 * torch.log(1 - uniform[..., 0]))
    angle = 2 * math.pi * uniform[..., 1]
    return torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], dim=-1).flatten(1)[:, :num_draws]


def stream(name: str) -> int:
    """A constant to xor a seed with, so that augmentations of another name draw other numbers from the same seed."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")

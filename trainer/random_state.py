"""Random number generators: keyed, saved, and kept apart."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch

_MASK = (1 << 64) - 1


def mix(*keys: int, start: int = 0) -> int:
    """A 64-bit hash of integers (the finaliser of splitmix64, Steele et al. 2014), for use as a seed.

    Args:
        start: the hash of keys that come before: `mix(a, b) == mix(b, start=mix(a))`.
    """
    state = start
    for key in keys:
        state = (state ^ (key & _MASK)) + 0x9E3779B97F4A7C15 & _MASK
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _MASK
        state = (state ^ state >> 27) * 0x94D049BB133111EB & _MASK
        state ^= state >> 31
    return state


def seed_cpu(seed: int) -> None:
    """Seed what a dataset draws from: Python, numpy and torch on the CPU."""
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    torch.default_generator.manual_seed(seed & (_MASK >> 1))


def cpu_state() -> tuple[Any, Any, torch.Tensor]:
    """The state of the generators that `seed_cpu` seeds."""
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def set_cpu_state(state: tuple[Any, Any, torch.Tensor]) -> None:
    """Put back what `cpu_state` took."""
    random.setstate(state[0])
    np.random.set_state(state[1])
    torch.set_rng_state(state[2])


def pack(state: tuple[Any, Any, torch.Tensor]) -> dict[str, Any]:
    """What `cpu_state` took, in types that load without running code."""
    name, keys, position, has_gauss, cached = cast(tuple[Any, ...], state[1])
    numpy_state = (name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached)
    return {"python": state[0], "numpy": numpy_state, "torch": state[2]}


def unpack(packed: dict[str, Any]) -> tuple[Any, Any, torch.Tensor]:
    """The reverse of `pack`."""
    version, internal, gauss = packed["python"]
    name, keys, position, has_gauss, cached = packed["numpy"]
    numpy_state = (name, keys.numpy().astype(np.uint32), position, has_gauss, cached)
    return (version, tuple(internal), gauss), numpy_state, packed["torch"]


def rng_state() -> dict[str, Any]:
    """Every generator of this process, in types that load without running code."""
    state = pack(cpu_state())
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def load_rng_state(state: dict[str, Any]) -> None:
    """Put back what `rng_state` took."""
    set_cpu_state(unpack(state))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


@contextmanager
def isolated_rng(*keys: int) -> Iterator[None]:
    """Draw from generators seeded by `keys` inside, and leave the outside ones as they were."""
    before = rng_state()
    seed_cpu(mix(*keys))
    if "cuda" in before:
        torch.cuda.manual_seed(mix(*keys) & (_MASK >> 1))
    try:
        yield
    finally:
        load_rng_state(before)

"""Distances between two sets of vectors, in float64.  Shapes: N, M vectors, D their dimension."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]

_BLOCK = 1024  # rows of a matrix of distances that are in memory at once


def frechet_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Squared Frechet distance of the Gaussians fitted to `x [N, D]` and `y [M, D]` (Dowson & Landau 1982).

    `|mean_x - mean_y|^2 + tr S_x + tr S_y - 2 tr (S_x S_y)^(1/2)`, with covariances over N - 1. As the S are `A^T A`
    and `B^T B` of the centred rows, the last trace is the nuclear norm of `A B^T`: no root of a matrix is taken, and
    fewer vectors than dimensions do no harm.

    Raises:
        ValueError: fewer than two vectors, or different dimensions.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if min(len(x), len(y)) < 2 or x.shape[1:] != y.shape[1:]:
        raise ValueError(f"two sets of two vectors or more are needed, got {x.shape} and {y.shape}")
    mean_x, mean_y = x.mean(0), y.mean(0)
    a, b = _root(x - mean_x), _root(y - mean_y)
    cross = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    distance = np.square(mean_x - mean_y).sum() + np.square(a).sum() + np.square(b).sum() - 2 * cross
    return max(0.0, float(distance))  # of equal sets rounding leaves -1e-13


def _root(centred: np.ndarray) -> np.ndarray:
    """Some `R [<= D, D]` with `R^T R` the covariance."""
    scaled = centred / math.sqrt(len(centred) - 1)
    return np.linalg.qr(scaled, mode="r") if len(scaled) > scaled.shape[1] else scaled


def gaussian_kernel(bandwidth: float) -> Kernel:
    """`exp(-|x - y|^2 / (2 bandwidth^2))` of all pairs."""
    return lambda x, y: np.exp(squared_distances(x, y) / (-2 * bandwidth * bandwidth))


def polynomial_kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """`(x^T y / D + 1)^3` of all pairs, as the kernel inception distance has it (Binkowski et al. 2018, 1801.01401)."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def median_distance(x: np.ndarray, max_vectors: int = 2000) -> float:
    """The median distance between vectors of `x [N, D]`, the usual bandwidth; of evenly spaced ones if many."""
    if len(x) > max_vectors:
        x = x[np.linspace(0, len(x) - 1, max_vectors).astype(int)]
    rows, columns = np.triu_indices(len(x), 1)
    return float(np.sqrt(np.median(squared_distances(x, x)[rows, columns])))


def squared_maximum_mean_discrepancy(within_x: np.ndarray, within_y: np.ndarray, across: np.ndarray) -> float:
    """Unbiased MMD^2 of kernel matrices `[N, N]`, `[M, M]`, `[N, M]` (Gretton et al. 2012, JMLR 13, eq. 3).

    Around zero, below as well as above, for two sets of one origin.
    """
    n, m = across.shape
    inside = [(k.sum() - np.trace(k)) / (size * (size - 1)) for k, size in ((within_x, n), (within_y, m))]
    return float(sum(inside) - 2 * across.mean())


def squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """`[N, D]`, `[M, D]` to `[N, M]`."""
    centre = y.mean(0)  # far from the origin the difference of large squares would lose digits
    x, y = x - centre, y - centre
    distances = np.square(x).sum(1)[:, None] + np.square(y).sum(1) - 2 * (x @ y.T)
    return np.maximum(distances, 0)


def nearest(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each of `x [N, D]` the distance to the nearest of `y [M, D]` and its index, `[N]` each."""
    indices = [squared_distances(x[i : i + _BLOCK], y).argmin(1) for i in range(0, len(x), _BLOCK)]
    index = np.concatenate(indices)
    return np.linalg.norm(x - y[index], axis=1), index  # again from the vectors: a copy is at 0 exactly

"""Which noise goes to which data."""

from __future__ import annotations

import torch
from torch import Tensor


def pair_by_transport(x_0: Tensor, x_1: Tensor) -> Tensor:
    """`x_0 [B, ...]` in the order that is nearest to `x_1 [B, ...]` in all: minibatch optimal transport, exact.

    Waits for the device: the assignment is solved on the CPU (Jonker-Volgenant).
    """
    from scipy.optimize import linear_sum_assignment

    costs = torch.cdist(x_1.flatten(1).float(), x_0.flatten(1).float()).square()
    _, chosen = linear_sum_assignment(costs.detach().cpu().numpy())
    return x_0[torch.from_numpy(chosen).to(x_0.device)]

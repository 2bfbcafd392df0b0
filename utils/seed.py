"""One seed for every generator of this process."""

from __future__ import annotations

import random


def seed_everything(seed: int) -> None:
    """Seed python, numpy and torch (all devices); the same on every rank, so that all build the same weights."""
    import numpy as np
    import torch  # here, so that a typo at the prompt is answered before torch is loaded

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)

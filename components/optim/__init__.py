"""Learning-rate schedules that torch does not have, and rates by layers."""

from components.optim.layer_wise import layer_wise_groups
from components.optim.schedule import constant_with_warmup, cosine_with_warmup, linear_with_warmup

__all__ = ["constant_with_warmup", "cosine_with_warmup", "layer_wise_groups", "linear_with_warmup"]

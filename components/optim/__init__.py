"""Learning-rate schedules that torch does not have."""

from components.optim.schedule import constant_with_warmup, cosine_with_warmup, linear_with_warmup

__all__ = ["constant_with_warmup", "cosine_with_warmup", "linear_with_warmup"]

"""Training objectives that return a sum and a count."""

from components.losses.cross_entropy import MultiTargetCrossEntropy, MultiTargetLoss

__all__ = ["MultiTargetCrossEntropy", "MultiTargetLoss"]

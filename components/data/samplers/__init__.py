"""Which items make a batch: budgets of length, mixtures of corpora, tasks, classes."""

from components.data.samplers.balanced import ClassBalancedBatchSampler
from components.data.samplers.budget import Budget
from components.data.samplers.dynamic import DynamicBatchSampler, PlannedBatchSampler
from components.data.samplers.lengths import labels_of, lengths_of
from components.data.samplers.mixture import MixtureBatchSampler
from components.data.samplers.plan import BatchPlan, Visit
from components.data.samplers.quotas import Share

__all__ = [
    "BatchPlan",
    "Budget",
    "ClassBalancedBatchSampler",
    "DynamicBatchSampler",
    "MixtureBatchSampler",
    "PlannedBatchSampler",
    "Share",
    "Visit",
    "labels_of",
    "lengths_of",
]

"""Cross entropy over several targets.  Shapes: B batch, K classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from components.labels import UNKNOWN


@dataclass(slots=True)
class MultiTargetLoss:
    """A batch's loss as sums, to be divided by counts over the whole global batch.

    Attributes:
        loss: `[]`; the sum over clips and targets, weighted.
        num_items: clips in the batch, by which `loss` is to be divided.
        sums: target -> `[]`, its unweighted sum over the clips where it is known.
        counts: target -> `[]`, how many clips that is.
    """

    loss: Tensor
    num_items: int
    sums: dict[str, Tensor]
    counts: dict[str, Tensor]


class MultiTargetCrossEntropy(nn.Module):
    """Sum over targets of `weight * cross entropy`, summed over clips.

    Targets are class ids, or shares of the classes as `components.augment.Mixup` makes them. The loss of a batch is
    (1 / B) * sum_b sum_t weight_t * CE(logits_tb, target_tb):  per clip, not per label. A clip whose class is unknown
    (-100, or no share of any) adds nothing for that target, but counts as a clip.

    Args:
        weights: target -> weight, exactly the targets to train; None trains all that the model has, with weight 1.
        label_smoothing: share of the probability spread over all classes.
    """

    def __init__(self, weights: Mapping[str, float] | None = None, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.weights = None if weights is None else dict(weights)
        self.label_smoothing = label_smoothing

    def forward(self, logits: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> MultiTargetLoss:
        """`{target: [B, K]}` and `{target: int64 [B]}`, or shares `[B, K]`, to sums."""
        weights = self.weights if self.weights is not None else dict.fromkeys(logits, 1.0)
        options = {"ignore_index": UNKNOWN, "reduction": "sum", "label_smoothing": self.label_smoothing}
        sums = {name: cross_entropy(logits[name].float(), targets[name], **options) for name in weights}
        loss = sum(weight * sums[name] for name, weight in weights.items())
        counts = {name: _num_known(targets[name]) for name in weights}
        num_items = len(next(iter(targets.values())))
        return MultiTargetLoss(loss, num_items, sums, counts)


def _num_known(target: Tensor) -> Tensor:
    return (target.sum(1) > 0).sum() if target.is_floating_point() else (target != UNKNOWN).sum()

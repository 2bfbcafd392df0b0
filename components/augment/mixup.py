"""Mixup as a function of seeds (Zhang et al. 2018, arXiv:1710.09412).  Shapes: B batch, T samples, K classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from components.augment.draws import check_probability
from components.augment.keyed import hash_uniform, stream
from utils.errors import UserError

# field of a batch -> (its lengths, the dimension that is time)
_FIELDS = {"waveform": ("audio_lens", -1), "features": ("feature_lens", 1)}
_NUM_POINTS = 4097


class Mixup(nn.Module):
    """Mix each clip of a collated batch with another one of it, and their labels alike; in training only.

    Clip i becomes  share * clip i + (1 - share) * partner,  share ~ Beta(alpha, alpha), at least one half. It keeps
    its length: a longer partner is cut, a shorter one repeated. Shares depend on each clip's seed alone; who is whose
    partner on the seeds of the batch, not on their order.

    Args:
        num_classes: target -> K, for targets that are class ids; a class id of -100 (unknown) becomes no class at all,
            so that a row's sum is what is known of it. Targets that are `[B, K]` already are mixed as they are.
        alpha: of the Beta distribution; small: mostly one of the two.
        p: probability that a clip is mixed.
        field: what is mixed.

    Raises:
        UserError: alpha is not above 0; (when used) a target is not in `num_classes`.
    """

    def __init__(
        self,
        num_classes: Mapping[str, int] | None = None,
        alpha: float = 0.2,
        p: float = 1.0,
        field: Literal["waveform", "features"] = "waveform",
    ) -> None:
        super().__init__()
        if alpha <= 0:
            raise UserError(f"Mixup: alpha is above 0, not {alpha}")
        self.num_classes, self.p, self.field = dict(num_classes or {}), check_probability(p, "Mixup"), field
        self.exponent, points, probability = _beta_table(alpha)
        self.register_buffer("points", points, persistent=False)
        self.register_buffer("probability", probability, persistent=False)

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """A batch with `seed [B]`, the field and its lengths, and `targets`, to one with both mixed.

        Targets come out as float `[B, K]`. `mixup_share [B]` and `mixup_partner [B]` are added, for losses that are
        mixed instead of labels: share * loss(own label) + (1 - share) * loss(label of the partner).
        """
        if not self.training:
            return dict(batch)
        lens_name, time = _FIELDS[self.field]
        chosen, rank, quantile = hash_uniform(batch["seed"] ^ stream("Mixup"), 3).T.contiguous()
        share = torch.where(chosen < self.p, self._share(quantile), 1.0)
        partner = _next_in_order(rank)
        mixed = {
            self.field: mix_in_time(batch[self.field], batch[lens_name], partner, share, time),
            "mixup_share": share,
            "mixup_partner": partner,
        }
        if batch.get("targets"):
            targets = {name: self._soft(name, values) for name, values in batch["targets"].items()}
            mixed["targets"] = {name: torch.lerp(x[partner], x, share.unsqueeze(1)) for name, x in targets.items()}
        return {**batch, **mixed}

    def _share(self, quantile: Tensor) -> Tensor:
        """Beta(alpha, alpha) by its inverse distribution function; the larger of x and 1 - x."""
        above = torch.searchsorted(self.probability, quantile / 2, right=True).clamp(1, _NUM_POINTS - 1)
        low, high = self.probability[above - 1], self.probability[above]
        point = torch.lerp(self.points[above - 1], self.points[above], (quantile / 2 - low) / (high - low))
        return 1 - point ** (1 / self.exponent)

    def _soft(self, name: str, values: Tensor) -> Tensor:
        if values.ndim == 2:
            return values.float()
        if name not in self.num_classes:
            raise UserError(f"Mixup: num_classes has no {name!r}, a target of the batch (it has {[*self.num_classes]})")
        # Not `one_hot`, which waits for the device; nor is -100 a class there.
        return (values.unsqueeze(1) == torch.arange(self.num_classes[name], device=values.device)).float()


def _beta_table(alpha: float) -> tuple[float, Tensor, Tensor]:
    """Distribution function of Beta(alpha, alpha) on [0, 1/2], over points y = x^e with e = min(alpha, 1).

    In y the density, (1 / e) x^(alpha - e) (1 - x)^(alpha - 1), is finite for every alpha.
    """
    exponent = min(alpha, 1.0)
    points = torch.linspace(0, 0.5**exponent, _NUM_POINTS, dtype=torch.float64)
    x = points ** (1 / exponent)
    density = x ** (alpha - exponent) * (1 - x) ** (alpha - 1)
    probability = torch.cat((torch.zeros(1, dtype=torch.float64), torch.cumulative_trapezoid(density, points)))
    return exponent, points.float(), (probability / (2 * probability[-1])).float()


def _next_in_order(rank: Tensor) -> Tensor:
    """Each clip's successor when they are sorted by `rank [B]`, the first one's for the last: nobody meets itself."""
    order = rank.argsort(stable=True)
    return torch.empty_like(order).scatter_(0, order, order.roll(-1))


def mix_in_time(values: Tensor, lens: Tensor, partner: Tensor, share: Tensor, time: int) -> Tensor:
    """`share * values + (1 - share) * values[partner]` inside each item's own length, the partner cut or repeated.

    Args:
        values: `[B, ...]`, zero behind `lens [B]` along the dimension `time`.
        partner: int64 `[B]`.
        share: `[B]`.
    """
    shape = [1] * values.ndim
    shape[time] = values.shape[time]
    position = torch.arange(values.shape[time], device=values.device).view(shape)
    column = (-1, *[1] * (values.ndim - 1))
    index = (position % lens[partner].clamp(min=1).view(column)).expand(values.shape)
    other = values[partner].gather(time, index)
    weight = torch.where(position < lens.view(column), share.view(column), 1.0).to(values.dtype)
    return torch.lerp(other, values, weight)


class CollateThen:
    """A collate function, and what is done to its batches.

    Args:
        collate: items -> batch.
        steps: name -> `batch -> batch`, e.g. a `Mixup`; null removes one.
    """

    def __init__(
        self, collate: Callable[[Sequence[Any]], Any], steps: Mapping[str, Callable[[Any], Any] | None]
    ) -> None:
        self.collate = collate
        self.steps = {name: step for name, step in steps.items() if step is not None}

    def __call__(self, items: Sequence[Any]) -> Any:
        batch = self.collate(items)
        for step in self.steps.values():
            batch = step(batch)
        return batch

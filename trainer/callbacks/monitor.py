"""A metric that is watched, and which of its values are better."""

from __future__ import annotations

import math
from collections.abc import Mapping

from utils.errors import UserError


class Monitor:
    """Reads `metric` out of what was logged.

    Args:
        metric: its full name, such as `val/accuracy`.
        mode: "min" or "max".
    """

    def __init__(self, metric: str, mode: str) -> None:
        if mode not in ("min", "max"):
            raise UserError(f"mode: must be min or max, got {mode!r}")
        self.metric, self._sign = metric, 1.0 if mode == "max" else -1.0

    def value(self, metrics: Mapping[str, float], owner: str) -> float:
        """Its newest value.

        Raises:
            UserError: nothing of that name was logged.
        """
        if self.metric not in metrics:
            known = ", ".join(sorted(name for name in metrics if name.startswith("val/"))) or "none"
            raise UserError(f"{owner}: no metric {self.metric!r} was logged; validation has {known}")
        return metrics[self.metric]

    def is_better(self, value: float, than: float | None, by: float = 0.0) -> bool:
        """Whether `value` beats `than` by more than `by`; not-a-number beats nothing."""
        if math.isnan(value):
            return False
        return than is None or math.isnan(than) or self._sign * (value - than) > by

    def rank(self, value: float) -> float:
        """A key that sorts best values last."""
        return -math.inf if math.isnan(value) else self._sign * value

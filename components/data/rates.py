"""One sample rate for a model and its data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from utils.errors import UserError


def check_sample_rate(loaders: Mapping[str, Any], sample_rate: int | None) -> None:
    """Refuse data at another rate than the model hears: it would take every sound for a slower or faster one.

    Args:
        loaders: config key -> loader, or loaders by name; what has no dataset with a `sample_rate` is passed over.
        sample_rate: Hz; None where the model does not say.

    Raises:
        UserError: a dataset has another rate; names its config key.
    """
    for key, loader in loaders.items():
        if isinstance(loader, Mapping):
            check_sample_rate({f"{key}.{name}": one for name, one in loader.items()}, sample_rate)
            continue
        for dataset in _datasets(getattr(loader, "dataset", None)):
            found = getattr(dataset, "sample_rate", None)
            if sample_rate is not None and found is not None and found != sample_rate:
                told = f"{key}.dataset.sample_rate is {found} Hz, the model hears at {sample_rate} Hz"
                raise UserError(f"{told}: set one to the other")


def _datasets(dataset: Any) -> list[Any]:
    """A dataset, those it joins, and the one it wraps."""
    inner = [dataset.dataset] if hasattr(dataset, "dataset") else []
    return [dataset, *getattr(dataset, "datasets", ()), *inner]

"""The generic training loop: torch and accelerate, no audio, no task."""

from importlib import import_module
from typing import Any

_HOMES = {
    "Callback": "trainer.callbacks.base",
    "Every": "trainer.state",
    "StepOutput": "trainer.step",
    "TrainState": "trainer.state",
    "Trainer": "trainer.trainer",
}
__all__ = ["Callback", "Every", "StepOutput", "TrainState", "Trainer"]


def __getattr__(name: str) -> Any:
    # On demand, so that `python -m trainer.checkpoint` does not load what it runs.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)

"""Things for configs to name."""

from __future__ import annotations

import os  # noqa: F401 - a path out of this module, for the tests of trust
from typing import Literal

from utils.errors import UserError


class Cnn:
    def __init__(
        self, channels: int, dropout: float = 0.1, pooling: Literal["mean", "max"] = "mean", name: str | None = None
    ):
        self.channels, self.dropout = channels, dropout


class Tagger:
    def __init__(self, backbone: Cnn, num_classes: int, *, causal: bool = False) -> None:
        self.backbone, self.num_classes = backbone, num_classes

    @classmethod
    def from_name(cls, name: str) -> Tagger:
        return cls(Cnn(1), len(name))


class Optimizer:
    def __init__(self, params, lr: float, **settings) -> None: ...


def refuses() -> None:
    raise UserError("the corpus is not there, set data_root=DIR")


def breaks() -> None:
    raise RuntimeError("a bug")


NOT_CALLABLE = 3

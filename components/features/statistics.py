"""Mean and variance of features over a collection.  Shapes: L frames, F features."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils.errors import UserError
from utils.io import replacing, write_json

_SUFFIXES = (".json", ".safetensors")


@dataclass(frozen=True)
class Moments:
    """Count, mean `[F]` and sum of squared deviations `[F]` of frames, in float64.

    Parts are merged without losing digits, however many frames there are (Chan, Golub & LeVeque 1983).
    """

    count: int
    mean: Tensor
    squares: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Moments:
        """Those of `[L, F]`."""
        features = features.double()
        mean = features.mean(0)
        return cls(len(features), mean, (features - mean).square().sum(0))

    def merge(self, other: Moments) -> Moments:
        """Those of both."""
        count = self.count + other.count
        shift = other.mean - self.mean
        mean = self.mean + shift * (other.count / count)
        squares = self.squares + other.squares + shift.square() * (self.count * other.count / count)
        return Moments(count, mean, squares)

    @property
    def var(self) -> Tensor:
        """Variance `[F]`, over the count."""
        return self.squares / self.count


@dataclass(frozen=True)
class FeatureStatistics:
    """What `GlobalCmvn` needs, and what it was made of.

    Attributes:
        mean, var: one number for each of F features.
        num_frames: over how many frames.
        made_of: the frontend's settings and the collection; for the reader.
    """

    mean: list[float]
    var: list[float]
    num_frames: int = 0
    made_of: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        numbers = [*self.mean, *self.var]
        if not self.mean or len(self.mean) != len(self.var) or not all(map(math.isfinite, numbers)):
            raise ValueError("mean and var must be as many finite numbers each")
        if min(self.var) < 0:
            raise ValueError("var must not be negative")

    def save(self, path: str | Path) -> None:
        """Write to .json, or to .safetensors with tensors `mean`, `var` and the rest as metadata; whole or not at all.

        Raises:
            UserError: the name ends otherwise, or it cannot be written.
        """
        path = check_suffix(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._write(path)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror or error}") from None

    def _write(self, path: Path) -> None:
        if path.suffix == ".json":
            write_json(path, asdict(self))
            return
        from safetensors.torch import save_file

        tensors = {name: torch.tensor(getattr(self, name), dtype=torch.float64) for name in ("mean", "var")}
        metadata = {"num_frames": str(self.num_frames), "made_of": json.dumps(self.made_of, default=str)}
        with replacing(path) as partial:
            save_file(tensors, partial, metadata)

    @classmethod
    def load(cls, path: str | Path) -> FeatureStatistics:
        """Read what `save` wrote.

        Raises:
            UserError: the file is missing or holds no such statistics.
        """
        path = check_suffix(path)
        try:
            return cls(**(_read_json(path) if path.suffix == ".json" else _read_safetensors(path)))
        except FileNotFoundError:
            make = "make them with `python -m components.data cmvn MANIFEST FILE --frontend NAME`"
            raise UserError(f"there are no feature statistics {path}: {make}") from None
        except Exception as error:  # each library has errors of its own for what it can not read
            raise UserError(f"{path} holds no feature statistics: {error}") from None


def check_suffix(path: str | Path) -> Path:
    """The path of statistics.

    Raises:
        UserError: it ends neither in .json nor in .safetensors.
    """
    path = Path(path)
    if path.suffix not in _SUFFIXES:
        raise UserError(f"feature statistics are a {' or '.join(_SUFFIXES)} file, not {path}")
    return path


def _read_json(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    return {name: content[name] for name in ("mean", "var", "num_frames", "made_of") if name in content}


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        content: dict[str, Any] = {name: file.get_tensor(name).tolist() for name in ("mean", "var")}
    content["num_frames"] = int(metadata.get("num_frames", 0))
    content["made_of"] = json.loads(metadata.get("made_of", "{}"))
    return content

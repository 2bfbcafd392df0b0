"""Transforms of the audiomentations library in a dataset.  Shapes: C channels, T samples."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from components.augment.draws import check_probability, happens
from components.augment.sound_files import keep_decodable
from utils.errors import BadSample, UserError
from utils.imports import require

# Some transforms fail on, or never return from, a clip of a sample or two.
_SHORTEST_SECONDS = 0.01

# Attributes in which transforms keep the files that they found in a folder -> what they are.
_FILE_LISTS = {"sound_file_paths": "noises", "ir_files": "impulse responses"}


class Audiomentations:
    """Transforms of audiomentations, or others that subclass its `BaseWaveformTransform`, one after the other.

    They draw from the global generators of Python and numpy, which the Trainer's loader seeds for each item; what they
    remember of the call before (`parameters`, frozen or not) is taken from them. Files that a transform found in its
    folders are decoded once, here, and those that fail are left out by name: one of them would end the training later.
    A clip below 10 ms is left as it is.

    Args:
        transforms: name -> transform, or a list; null removes one. Each has a `p` of its own, 0.5 by the library's
            default.
        p: probability of applying any.

    Raises:
        UserError: something here is not a transform, a folder holds no file that decodes, or a library is missing.
        BadSample: (when used) a transform made NaN or infinite samples, or can not take so many channels.
    """

    def __init__(self, transforms: Mapping[str, Any] | Sequence[Any], p: float = 1.0) -> None:
        if not isinstance(transforms, Mapping):
            transforms = {str(position): transform for position, transform in enumerate(transforms)}
        self.transforms = {name: transform for name, transform in transforms.items() if transform is not None}
        self.p = check_probability(p, "Audiomentations")
        warnings.filterwarnings("ignore", message=".* had to be resampled from .* This hurt execution time")
        for name, transform in self.transforms.items():
            if not callable(transform):
                raise UserError(f"Audiomentations: {name} is no transform, but {transform!r}")
            for part in _parts(transform):
                _prepare(part)
        parts = [part for transform in self.transforms.values() for part in _parts(transform)]
        self._as_built = [(part, dict(part.parameters)) for part in parts if hasattr(part, "parameters")]

    def __call__(self, waveform: Tensor, sample_rate: int) -> Tensor:
        if waveform.shape[-1] < _SHORTEST_SECONDS * sample_rate or not happens(self.p):
            return waveform
        samples = np.array(waveform.numpy())  # a transform may write into what it is given
        samples = samples[0] if len(samples) == 1 else samples
        for part, parameters in self._as_built:
            part.parameters = dict(parameters)
        for name, transform in self.transforms.items():
            samples = _apply(name, transform, samples, sample_rate)
        return torch.from_numpy(np.ascontiguousarray(np.atleast_2d(samples), dtype=np.float32))


def _apply(name: str, transform: Any, samples: np.ndarray, sample_rate: int) -> np.ndarray:
    try:
        changed = transform(samples, sample_rate)
    except Exception as error:
        kind = type(error).__name__
        if kind.endswith(("AudioNotSupportedException", "MultichannelAudioShape")):
            raise BadSample(f"{name} can not take {samples.shape}: {error}", reason=f"{name}: {kind}") from None
        error.add_note(f"in the augmentation {name!r}, of {samples.shape} at {sample_rate} Hz")
        raise
    if not np.isfinite(changed).all():
        raise BadSample(f"the augmentation {name!r} made NaN or infinite samples", reason=f"{name} made NaN")
    return changed


def _parts(transform: Any) -> Iterator[Any]:
    """A transform, and those inside of it."""
    yield transform
    inner = list(getattr(transform, "transforms", None) or [])
    for part in (*inner, getattr(transform, "noise_transform", None)):
        if part is not None:
            yield from _parts(part)


def _prepare(part: Any) -> None:
    if type(part).__name__ == "Limiter" and type(part).__module__.startswith("audiomentations"):
        require("numpy_audio_limiter", extra="augment")
    for attribute, what in _FILE_LISTS.items():
        if files := getattr(part, attribute, None):
            setattr(part, attribute, keep_decodable(files, f"{what} of {type(part).__name__}"))
    if isinstance(getattr(part, "num_transforms", None), list):  # SomeOf wants a tuple, which YAML has not
        part.num_transforms = tuple(part.num_transforms)
    if hasattr(part, "time_info_arr"):  # durations, by position in the list of files
        part.time_info_arr = np.full(len(part.sound_file_paths), -1.0, dtype=np.float32)

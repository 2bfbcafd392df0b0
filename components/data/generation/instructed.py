"""Clips with an instruction and conditions, of one task and of several.  Shapes: T samples, L frames, C channels."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from components.data.concat import ConcatDataset
from components.data.dataset import AudioDataset
from components.data.generation.canvas import FixedCanvas
from components.data.generation.clip import Clip, ConditionMaker, Kind, absent
from components.data.generation.instructions import Instructions
from components.data.generation.sources import Augmentation
from utils.errors import BadSample, UserError
from utils.names import did_you_mean


class InstructedDataset(Dataset):
    """The clips of a dataset as targets of a task: an instruction, and conditions made of each clip and its record.

    An item is `{"id": str, "task": str, "instruction": str, "waveform": float32 [1, T], "targets": {target: int},
    "seed": int, <field>: ..., <stream>: ..., "has_<stream>": bool}`. Every item has every stream: one that is absent is
    an empty text, no samples, or no frames, so that items of all tasks with the same `streams` make a batch.

    The target is the clip after `prepare` and on its `canvas`, and conditions are made of this very target: what has a
    time fits it, however it was cropped. Where the dataset is one for training, what is drawn comes from torch's global
    generator, which the Trainer's loader seeds by (seed, epoch, index). Else it is keyed by `seed`, task and id, and
    the same in every run; then the item's `seed` is such a key too.

    Args:
        dataset: the targets and their records.
        task: its name.
        templates, wording: of the instructions, see `Instructions`.
        conditions: name -> what makes streams of a `Clip`; null removes one.
        streams: all streams of the experiment, name -> kind as in `ConditionMaker.kinds`; by default this task's.
        prepare: name -> `(waveform [1, T], sample_rate) -> waveform`, done to every clip, also in evaluation; null
            removes one. `NormalizeLevel`, say.
        canvas: brings all to one length, last of all.
        fields: of the records, that items bring along as they are; `labels`, say.
        seed: another one draws other things in evaluation.

    Raises:
        UserError: the dataset makes `features`; a condition makes a stream that `streams` lacks or has of another kind,
            or that another condition makes; see also `Instructions`.
    """

    def __init__(
        self,
        dataset: AudioDataset,
        task: str,
        templates: str | Path | Sequence[str],
        conditions: Mapping[str, ConditionMaker | None] | None = None,
        streams: Mapping[str, Kind] | None = None,
        wording: int | str | None = None,
        prepare: Mapping[str, Augmentation | None] | None = None,
        canvas: FixedCanvas | None = None,
        fields: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        if dataset.features is not None:
            raise UserError(f"task {task}: targets are waveforms, give the dataset no `features`")
        self.dataset, self.task, self.canvas, self.fields, self.seed = dataset, task, canvas, tuple(fields), seed
        self.conditions = {name: maker for name, maker in (conditions or {}).items() if maker is not None}
        self.prepare = {name: step for name, step in (prepare or {}).items() if step is not None}
        self.instructions = Instructions(templates, wording)
        made = _kinds_of(task, self.conditions)
        self.streams: dict[str, Kind] = dict(made if streams is None else streams)
        for name, kind in made.items():
            if name not in self.streams:
                hint = did_you_mean(name, list(self.streams))
                raise UserError(f"task {task}: streams has no {name!r}{hint}, which a condition makes")
            if self.streams[name] != kind:
                raise UserError(f"task {task}: {name!r} is of kind {kind!r}, not {self.streams[name]!r} as in streams")
        self._absent = {name: absent(kind) for name, kind in self.streams.items()}
        manifest = dataset.manifest
        self._folder = Path(manifest).parent if isinstance(manifest, (str, Path)) else Path()

    @property
    def deterministic(self) -> bool:
        """Whether an item is the same at every visit: then nobody needs to seed generators for it."""
        return self.dataset.deterministic

    @property
    def records(self) -> Sequence[dict[str, Any]]:
        """The record of each item."""
        return self.dataset.records

    @property
    def durations(self) -> np.ndarray:
        """Seconds of each item, float64 `[N]`: those of the canvas where there is one."""
        if self.canvas is None:
            return self.dataset.durations
        longest = np.full(len(self), self.canvas.seconds)
        return longest if self.canvas.pad_short else np.minimum(self.dataset.durations, longest)

    @property
    def bad_samples(self) -> list[dict[str, Any]]:
        """What the dataset left out when it was made."""
        return self.dataset.bad_samples

    def fingerprint(self) -> dict[str, Any]:
        """What identifies this data in a run's record."""
        return {**self.dataset.fingerprint(), "task": self.task, "templates": self.instructions.templates}

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.dataset[index]
        if not self.deterministic:
            return self._instructed(item, index, item["seed"])
        key = key_of(self.seed, self.task, item["id"])
        with keyed_draws(key):
            return self._instructed(item, index, key)

    def _instructed(self, item: Mapping[str, Any], index: int, seed: int) -> dict[str, Any]:
        clip = self._target(item, self.records[index])
        streams: dict[str, Any] = {}
        for maker in self.conditions.values():
            streams |= {name: value for name, value in maker(clip).items() if value is not None}
        told = {"id": item["id"], "task": self.task, "instruction": self.instructions(clip)}
        own = {"waveform": clip.waveform, "targets": item["targets"], "seed": seed}
        fields = {field: clip.get(field) for field in self.fields}
        present = {f"has_{name}": name in streams for name in self.streams}
        return {**told, **own, **fields, **self._absent, **streams, **present}

    def _target(self, item: Mapping[str, Any], record: dict[str, Any]) -> Clip:
        waveform, rate, start = item["waveform"], self.dataset.sample_rate, 0
        for step in self.prepare.values():
            waveform = step(waveform, rate)
        if self.canvas is not None:
            try:
                waveform, start = self.canvas.fit(waveform, rate)
            except BadSample as error:
                error.sample_id, error.source = item["id"], record.get("audio_path")
                raise
        return Clip(waveform, rate, record, start / rate, self._folder)


class MultitaskDataset(ConcatDataset):
    """Several tasks as one dataset: every task has an item for each of its clips, with the streams of all.

    A `MixtureBatchSampler` with `mode: sample` mixes them in every batch, by weights.

    Args:
        dataset: the clips; read, and kept in memory, once for all tasks that bring no `dataset` of their own.
        tasks: task -> a partial of `InstructedDataset`, with what is the task's own; null removes one.
        streams, prepare, canvas, fields: of the tasks that bring none of their own, see `InstructedDataset`. By default
            streams that any task makes.

    Raises:
        UserError: no task is left, or two make streams of one name and different kinds; see also `InstructedDataset`.
    """

    def __init__(
        self,
        dataset: AudioDataset,
        tasks: Mapping[str, Callable[..., InstructedDataset] | None],
        streams: Mapping[str, Kind] | None = None,
        prepare: Mapping[str, Augmentation | None] | None = None,
        canvas: FixedCanvas | None = None,
        fields: Sequence[str] = (),
    ) -> None:
        shared = {"dataset": dataset, "prepare": prepare, "canvas": canvas, "fields": fields}
        kept = {name: make for name, make in tasks.items() if make is not None}
        if streams is None:
            streams = _kinds_of_all({name: _made(make, task=name, **shared) for name, make in kept.items()})
        super().__init__({name: _made(make, task=name, streams=streams, **shared) for name, make in kept.items()})
        self.streams = dict(streams)

    @property
    def bad_samples(self) -> list[dict[str, Any]]:
        """What the dataset left out when it was made."""
        distinct = {id(part.dataset): part.dataset for part in self.named.values()}
        return [bad for dataset in distinct.values() for bad in dataset.bad_samples]


def _made(make: Callable[..., InstructedDataset], **shared: Any) -> InstructedDataset:
    """A task's dataset; what its partial brings goes before what tasks share."""
    own = make.keywords if isinstance(make, partial) else {}
    return make(**{name: value for name, value in shared.items() if name not in own})


def key_of(*parts: object) -> int:
    """A number from 0 to 2^62 - 1 that depends on nothing but `parts`."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 2


@contextmanager
def keyed_draws(key: int) -> Iterator[None]:
    """Draws from torch's global generator of the CPU depend on `key` alone, inside; outside they go on as before."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(key)
        yield


def _kinds_of_all(tasks: Mapping[str, InstructedDataset]) -> dict[str, Kind]:
    kinds: dict[str, Kind] = {}
    for task, dataset in tasks.items():
        for name, kind in dataset.streams.items():
            if kinds.setdefault(name, kind) != kind:
                raise UserError(f"task {task}: {name!r} is of kind {kind!r}, and of another task's {kinds[name]!r}")
    return kinds


def _kinds_of(task: str, conditions: Mapping[str, ConditionMaker]) -> dict[str, Kind]:
    made: dict[str, Kind] = {}
    for maker in conditions.values():
        for name, kind in maker.kinds.items():
            if name in made:
                raise UserError(f"task {task}: two conditions make {name!r}: give one of them another `stream`")
            made[name] = kind
    return made

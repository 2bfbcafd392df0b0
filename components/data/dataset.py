"""Clips of a manifest as a map-style dataset."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from components.data.audio import load_audio
from components.data.manifest import Record, read_manifest, resolve_audio_path, scan_audio
from components.labels import UNKNOWN
from utils.errors import UserError

Augmentation = Callable[[Tensor, int], Tensor]


class AudioDataset(Dataset):
    """Clips of a manifest, decoded, mixed down to mono and resampled.

    An item is `{"id": str, "waveform": float32 [1, T], "targets": {target: int}, "seed": int}`.

    Args:
        manifest: a JSONL file, see `components.data.manifest`.
        sample_rate: Hz of the waveforms that come out.
        labels: target -> its class names in order. A clip whose record has no such label, or one that is not in the
            list, gets the class id -100.
        augment: None for evaluation: nothing is random and `seed` is 0. A mapping name -> `(waveform, sample_rate) ->
            waveform` makes it a training set, even an empty one: every visit of a clip draws a new `seed`, and the
            augmentations are applied in order. They draw from the global generators, which the Trainer's loader
            seeds by (seed, epoch, index) before an item is read.
        min_duration, max_duration: seconds; shorter and longer clips are left out and counted in `dropped`.
        max_samples: keep the first so many clips.
        channel: which channel to take; None for the mean of all.
        cache_bytes: keep up to so many bytes of decoded waveforms in memory (of each loader worker, where there are).

    Raises:
        UserError: the manifest is unusable, every clip was left out, or (when read) a clip cannot be decoded.
    """

    def __init__(
        self,
        manifest: str | Path,
        sample_rate: int,
        labels: Mapping[str, Sequence[str]] | None = None,
        augment: Mapping[str, Augmentation | None] | None = None,
        min_duration: float = 0.0,
        max_duration: float | None = None,
        max_samples: int | None = None,
        channel: int | None = None,
        cache_bytes: int = 0,
    ) -> None:
        self.manifest, self.sample_rate, self.channel = str(manifest), sample_rate, channel
        self.class_ids = {
            target: {str(name): i for i, name in enumerate(names)} for target, names in (labels or {}).items()
        }
        self.augment = None if augment is None else {name: step for name, step in augment.items() if step is not None}
        self.dropped: Counter[str] = Counter()
        kept = self._filter(self._read_records(), min_duration, max_duration)
        self.records = kept if max_samples is None else kept[:max_samples]
        if not self.records:
            raise UserError(f"no clip of {manifest} is left: {dict(self.dropped) or f'max_samples={max_samples}'}")
        self._cache: dict[int, Tensor] = {}
        self._cache_room = cache_bytes

    def _read_records(self) -> list[Record]:
        return read_manifest(self.manifest)

    def _filter(self, records: list[Record], shortest: float, longest: float | None) -> list[Record]:
        kept = []
        for record in records:
            if record["duration"] < shortest:
                self.dropped[f"shorter than {shortest} s"] += 1
            elif longest is not None and record["duration"] > longest:
                self.dropped[f"longer than {longest} s"] += 1
            else:
                kept.append(record)
        return kept

    @property
    def deterministic(self) -> bool:
        """Whether an item is the same at every visit: then nobody needs to seed generators for it."""
        return self.augment is None

    @property
    def durations(self) -> list[float]:
        """Seconds of each clip, as the manifest says."""
        return [record["duration"] for record in self.records]

    def fingerprint(self) -> dict[str, Any]:
        """What identifies this data in a run's record."""
        return {
            "manifest": self.manifest,
            "sha256": hashlib.sha256(Path(self.manifest).read_bytes()).hexdigest(),
            "num_items": len(self),
            "hours": round(sum(self.durations) / 3600, 4),
            "dropped": dict(self.dropped),
        }

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.records[index]
        waveform, seed = self._waveform(index), 0
        if self.augment is not None:
            seed = int(torch.randint(2**62, ()))
            for step in self.augment.values():
                waveform = step(waveform, self.sample_rate)
        return {"id": record["id"], "waveform": waveform, "targets": self._targets(record), "seed": seed}

    def _targets(self, record: Record) -> dict[str, int]:
        labels = record.get("labels", {})
        return {target: ids.get(str(labels.get(target)), UNKNOWN) for target, ids in self.class_ids.items()}

    def _waveform(self, index: int) -> Tensor:
        if index in self._cache:
            return self._cache[index]
        record = self.records[index]
        path = resolve_audio_path(record, self.manifest)
        waveform = load_audio(path, self.sample_rate, self.channel)
        # libsndfile shortens a truncated file without a word: only the manifest knows better.
        missing = record["duration"] - waveform.shape[-1] / self.sample_rate
        if missing > max(0.1, 0.05 * record["duration"]):
            promised = f"the {record['duration']} s of {self.manifest}"
            raise UserError(f"cannot read {path}: it ends {missing:.2f} s before {promised}")
        if waveform.nbytes <= self._cache_room:
            self._cache_room -= waveform.nbytes
            self._cache[index] = waveform
        return waveform


class AudioFiles(AudioDataset):
    """Plain audio files and folders as a dataset without labels; an id is the file's path.

    Args:
        paths: a file, a folder (searched deeply), or a list of both.
        sample_rate, channel: as in `AudioDataset`.
    """

    def __init__(self, paths: str | Sequence[str], sample_rate: int, channel: int | None = None) -> None:
        self._paths = paths
        super().__init__("", sample_rate, channel=channel)

    def _read_records(self) -> list[Record]:
        return scan_audio(self._paths)

    def fingerprint(self) -> dict[str, Any]:
        """What identifies this data in a run's record: there is no manifest, so its ids are hashed."""
        ids = "\n".join(record["id"] for record in self.records)
        digest = hashlib.sha256(ids.encode()).hexdigest()
        return {"sha256": digest, "num_items": len(self), "hours": round(sum(self.durations) / 3600, 4)}

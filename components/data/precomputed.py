"""Features that were computed before, as a map-style dataset.  Shapes: L frames, D features."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.utils.data import Dataset

from components.data.faults import missing_field
from components.data.feature_shards import SETTINGS
from components.data.manifest import Record
from components.data.readers import read_records
from components.labels import class_ids_of, numbered
from utils.errors import BadSample, UserError

_MOST_OPEN = 128  # shards of one process
_AGAIN = "the command that made it makes damaged shards anew: `python -m components.data extract ...`"


class PrecomputedDataset(Dataset):
    """What `python -m components.data extract` wrote: features or latents, memory-mapped, a shard opened when needed.

    An item is `{"id": str, "features": float32 [L, D], "num_frames": L, "targets": {target: int}, "seed": int, <field>:
    ...}`.

    Args:
        manifest: `manifest.jsonl` of the folder that was written, or a selection of its lines beside it.
        fields: keys of the records that items bring along. A clip without one of them can not be used.
        labels: target -> its class names in order. A clip whose record has no such label, or one that is not in the
            list, gets the class id -100.
        crop_frames: at most so many frames of a clip; no more than these are read. None for all.
        training: every visit of a clip draws a new `seed` and, with `crop_frames`, a new place, from torch's global
            generator, which the Trainer's loader seeds by (seed, epoch, index). Without, nothing is random: `seed` is 0
            and a crop begins with the first frame.

    Attributes:
        num_features: D.
        num_frames: L of each item, int64 `[N]`.
        bad_samples: `{"id", "source", "reason", "detail"}` of the clips that lack a field.

    Raises:
        UserError: the manifest is of another kind, a shard is missing or can not be read, its shapes are not what the
            manifest says, or no clip is left.
    """

    def __init__(
        self,
        manifest: str | Path,
        fields: Sequence[str] = (),
        labels: Mapping[str, Sequence[str]] | None = None,
        crop_frames: int | None = None,
        training: bool = False,
    ) -> None:
        if crop_frames is not None and crop_frames < 1:
            raise UserError(f"crop_frames must be positive, not {crop_frames}")
        self.manifest, self.fields = str(manifest), tuple(fields)
        self.crop_frames, self.training = crop_frames, training
        self.class_ids = numbered(labels)
        self.bad_samples: list[dict[str, Any]] = []
        self.num_features = 0
        self._shards: OrderedDict[str, Any] = OrderedDict()
        records = read_records(manifest, "jsonl", fill=False)
        kept = np.array([self._check(record) for record in records])
        if not kept.any():
            raise UserError(f"no clip of {manifest} is left: {self.bad_samples[0]['detail']}")
        self.records = records.select(kept)
        whole = np.array([record["num_frames"] for record in self.records], dtype=np.int64)
        self.num_frames = whole if crop_frames is None else np.minimum(whole, crop_frames)

    def _check(self, record: Record) -> bool:
        name, (path, key) = f"{self.manifest}: clip {record['id']!r}", self._place(record)
        try:
            found = self._shard(path).get_slice(key).get_shape()
        except FileNotFoundError:
            raise UserError(f"{name} lies in {path}, which is missing; {_AGAIN}") from None
        except (SafetensorError, OSError) as error:
            raise UserError(f"{name} can not be found in {path} ({error}); {_AGAIN}") from None
        self.num_features = self.num_features or found[-1]
        if found != [record["num_frames"], self.num_features]:
            promised = f"[{record['num_frames']}, {self.num_features}]"
            raise UserError(f"{name} has features {found} in {path}, not {promised}; {_AGAIN}")
        missing = missing_field(record, self.fields)
        if missing is not None:
            detail = f"{name} has no {missing!r}"
            self.bad_samples.append(
                {"id": record["id"], "source": self.manifest, "reason": f"no {missing}", "detail": detail}
            )
        return missing is None

    def _place(self, record: Record) -> tuple[str, str]:
        try:
            return str(Path(self.manifest).parent / record["features_path"]), record["features_key"]
        except KeyError as error:
            raise UserError(
                f"{self.manifest}: clip {record['id']!r} has no {error}: this is no manifest of extracted features"
            ) from None

    def _shard(self, path: str) -> Any:
        if path not in self._shards:
            self._shards[path] = safe_open(path, "pt")
            if len(self._shards) > _MOST_OPEN:
                self._shards.popitem(last=False)
        self._shards.move_to_end(path)
        return self._shards[path]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shards": OrderedDict()}

    @property
    def deterministic(self) -> bool:
        """Whether an item is the same at every visit: then nobody needs to seed generators for it."""
        return not self.training

    @property
    def durations(self) -> np.ndarray:
        """Seconds of each whole clip, float64 `[N]`; `num_frames` is what comes out of it."""
        return self.records.durations

    def fingerprint(self) -> dict[str, Any]:
        """What identifies this data in a run's record."""
        try:
            made = json.loads((Path(self.manifest).parent / SETTINGS).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            made = {}
        return {
            "manifest": self.manifest,
            "sha256": hashlib.sha256(Path(self.manifest).read_bytes()).hexdigest(),
            "extractor": made.get("code_and_weights"),
            "num_items": len(self),
            "hours": round(float(self.durations.sum()) / 3600, 4),
            "num_frames": int(self.num_frames.sum()),
            "bad": len(self.bad_samples),
        }

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.records[index]
        seed, start, length = 0, 0, int(self.num_frames[index])
        if self.training:
            seed = int(torch.randint(2**62, ()))
            start = int(torch.randint(record["num_frames"] - length + 1, ()))
        features = self._read(record, start, start + length)
        fields = {field: record[field] for field in self.fields}
        own = {"id": record["id"], "features": features, "num_frames": length}
        return {**own, "targets": class_ids_of(record, self.class_ids), "seed": seed, **fields}

    def _read(self, record: Record, start: int, end: int) -> Tensor:
        path, key = self._place(record)
        try:
            features = self._shard(path).get_slice(key)[start:end].float()
            reason = None if bool(features.isfinite().all()) else "they are not finite"
        except (SafetensorError, OSError) as error:
            reason = str(error)
        if reason is not None:
            self._shards.pop(path, None)
            message = f"cannot read the features of {record['id']} in {path}: {reason}; {_AGAIN}"
            raise BadSample(message, sample_id=record["id"], source=path, reason="damaged features")
        return features

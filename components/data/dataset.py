"""Clips of a collection as a map-style dataset."""

from __future__ import annotations

import functools
import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from components.data.audio import load_audio, tolerance
from components.data.cache import ArrayCache
from components.data.faults import PLAUSIBLE_RATES, Fault, missing_field
from components.data.identity import content_key, settings_key
from components.data.manifest import Record, audio_files
from components.data.readers import iterate_records
from components.data.readers.headers import complete, header_of
from components.data.records import Records
from components.labels import class_ids_of, numbered
from utils.errors import BadSample, UserError
from utils.logging import is_main_process

logger = logging.getLogger(__name__)

Augmentation = Callable[[Tensor, int], Tensor]

# What of a record says where its audio lies.
_PLACE = ("offset", "byte_offset", "num_bytes", "member", "channel")
_NUM_PROBED = 8


class AudioDataset(Dataset):
    """Clips of a collection, decoded, mixed down to mono and resampled.

    An item is `{"id": str, "waveform": float32 [1, T], "targets": {target: int}, "seed": int, <field>: ...}`; with
    `features`, `"features": float32 [L, F]` is in the waveform's place.

    Args:
        manifest: a JSONL file, or any collection that `components.data.readers` reads.
        sample_rate: Hz of the waveforms that come out.
        labels: target -> its class names in order. A clip whose record has no such label, or one that is not in the
            list, gets the class id -100.
        fields: keys of the records that items bring along (`text`, `speaker`, ...). A record without one of them, or
            with nothing but blanks there, can not be used.
        augment: None for evaluation: nothing is random and `seed` is 0. A mapping name -> `(waveform, sample_rate) ->
            waveform` makes it a training set, even an empty one: every visit of a clip draws a new `seed`, and the
            augmentations are applied in order. They draw from the global generators, which the Trainer's loader
            seeds by (seed, epoch, index) before an item is read.
        features: a frontend `(waveform [1, 1, T], audio_lens [1]) -> (features [1, L, F], feature_lens [1])`, run here,
            in the data workers where there are, instead of on the training's device.
        min_duration, max_duration: seconds; shorter and longer clips are left out and counted in `dropped`.
        max_samples: keep the first so many clips.
        channel: which channel to take where a record does not say; None for the mean of all.
        format: how `manifest` is laid out (`components.data.readers.FORMATS`); None tells it from what is there.
        cache_bytes: keep up to so many bytes in memory (of each loader worker, where there are) of what comes before
            anything random: the waveforms, or the features where nothing is augmented.
        cache: keeps the same on disk, for all workers, ranks and runs.

    Attributes:
        bad_samples: `{"id", "source", "reason", "detail"}` of the lines that can not be used. Clips that turn out so
            when they are read raise `BadSample`.

    Raises:
        UserError: the collection can not be read, every clip was left out, or `sample_rate`, `features` or a step of
            `augment` do not fit.
    """

    def __init__(
        self,
        manifest: str | Path | Sequence[str] | Mapping[str, str],
        sample_rate: int,
        labels: Mapping[str, Sequence[str]] | None = None,
        fields: Sequence[str] = (),
        augment: Mapping[str, Augmentation | None] | None = None,
        features: nn.Module | None = None,
        min_duration: float = 0.0,
        max_duration: float | None = None,
        max_samples: int | None = None,
        channel: int | None = None,
        format: str | None = None,
        cache_bytes: int = 0,
        cache: ArrayCache | None = None,
    ) -> None:
        self.manifest, self.sample_rate, self.channel, self.fields = manifest, sample_rate, channel, tuple(fields)
        self.class_ids = numbered(labels)
        self.augment = None if augment is None else {name: step for name, step in augment.items() if step is not None}
        self.features = None if features is None else features.eval()
        self._check_parts()
        self._shortest, self._longest = min_duration, float("inf") if max_duration is None else max_duration
        self.dropped: Counter[str] = Counter()
        self.bad_samples: list[dict[str, Any]] = []
        self._rates: Counter[int] = Counter()
        self.records = Records.from_iterable(islice(self._usable(self._iterate(format)), max_samples))
        if not len(self.records):
            why = dict(self.dropped) or dict(Counter(bad["reason"] for bad in self.bad_samples))
            raise UserError(f"no clip of {manifest} is left: {why or f'max_samples={max_samples}'}")
        if is_main_process():
            self._say_what_changes()
        self._memory: dict[int, Tensor] = {}
        self._memory_left = cache_bytes
        self._cache = cache
        made_of: list[Any] = [sample_rate, load_audio]
        if self.features is not None and self.augment is None:
            made_of.append(self.features)
        self._settings = settings_key(made_of) if cache is not None else ""

    def _check_parts(self) -> None:
        if self.sample_rate not in PLAUSIBLE_RATES:
            raise UserError(f"sample_rate: implausible, {self.sample_rate} Hz")
        wanted = getattr(self.features, "sample_rate", self.sample_rate)
        if wanted != self.sample_rate:
            raise UserError(f"features: made for {wanted} Hz, but sample_rate is {self.sample_rate} Hz")
        for name, step in (self.augment or {}).items():
            if any(kind.__name__ == "BaseWaveformTransform" for kind in type(step).__mro__):
                ours = "components.augment.Audiomentations"
                raise UserError(f"augment.{name}: a transform of audiomentations goes inside of {ours}, which keys it")

    def _iterate(self, format: str | None) -> Iterator[Record]:
        return iterate_records(self.manifest, format, on_bad=self.bad_samples.append)

    def _usable(self, records: Iterator[Record]) -> Iterator[Record]:
        for record in records:
            if record["duration"] < self._shortest:
                self.dropped[f"shorter than {self._shortest} s"] += 1
            elif record["duration"] > self._longest:
                self.dropped[f"longer than {self._longest} s"] += 1
            elif missing := missing_field(record, self.fields):
                detail = f"{record['id']} of {self.manifest} has no {missing!r}"
                self.bad_samples.append(
                    {"id": record["id"], "source": str(self.manifest), "reason": f"no {missing}", "detail": detail}
                )
            else:
                self._rates[record["sample_rate"]] += 1
                yield record

    @property
    def deterministic(self) -> bool:
        """Whether an item is the same at every visit: then nobody needs to seed generators for it."""
        return self.augment is None

    @property
    def durations(self) -> np.ndarray:
        """Seconds of each clip, float64 `[N]`."""
        return self.records.durations

    def fingerprint(self) -> dict[str, Any]:
        """What identifies this data in a run's record."""
        one_file = isinstance(self.manifest, (str, Path)) and Path(self.manifest).is_file()
        identity = Path(self.manifest).read_bytes() if one_file else "\n".join(r["id"] for r in self.records).encode()
        return {
            "manifest": str(self.manifest),
            "sha256": hashlib.sha256(identity).hexdigest(),
            "num_items": len(self),
            "hours": round(float(self.durations.sum()) / 3600, 4),
            "dropped": dict(self.dropped),
            "bad": len(self.bad_samples),
        }

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.records[index]
        content, seed = self._before_chance(index, record), 0
        if self.augment is not None:
            seed = int(torch.randint(2**62, ()))
            content = self._augmented(content, record)
            content = self._features(content, record)
        own = {"waveform" if self.features is None else "features": content}
        fields = {field: record[field] for field in self.fields}
        return {"id": record["id"], **own, "targets": class_ids_of(record, self.class_ids), "seed": seed, **fields}

    def _augmented(self, waveform: Tensor, record: Record) -> Tensor:
        assert self.augment is not None
        try:
            for step in self.augment.values():
                waveform = step(waveform, self.sample_rate)
        except BadSample as error:
            error.sample_id, error.source = record["id"], record["audio_path"]
            raise
        return waveform

    def _before_chance(self, index: int, record: Record) -> Tensor:
        """Everything that is the same at every visit: the waveform, or the features where nothing is augmented."""
        if index in self._memory:
            return self._memory[index]
        content = self._cached(record) if self._cache is not None else self._compute(record)
        if content.nbytes <= self._memory_left:
            self._memory_left -= content.nbytes
            self._memory[index] = content
        return content

    def _cached(self, record: Record) -> Tensor:
        try:
            key = content_key(record["audio_path"], duration=record["duration"], **self._place(record))
        except UserError:
            return self._compute(record)  # which knows better why it can not be read
        return torch.from_numpy(
            self._cache.get_or_make(f"{key}-{self._settings}", lambda: self._compute(record).numpy())
        )

    def _compute(self, record: Record) -> Tensor:
        waveform = self._waveform(record)
        return waveform if self.augment is not None else self._features(waveform, record)

    def _features(self, waveform: Tensor, record: Record) -> Tensor:
        if self.features is None:
            return waveform
        with torch.no_grad():
            features, lens = self.features(waveform.unsqueeze(0), torch.tensor([waveform.shape[-1]]))
        if not int(lens[0]):
            raise BadSample(
                f"{record['id']} of {self.manifest} is too short for a single frame: {waveform.shape[-1]} samples",
                sample_id=record["id"], source=record["audio_path"], reason="too short for a frame",
            )  # fmt: skip
        return features[0, : int(lens[0])]

    def _waveform(self, record: Record) -> Tensor:
        duration = record["duration"]
        # A manifest rounds, and decoders add a little; what is much longer than it says is cut.
        slack = 0.0 if "offset" in record else tolerance(duration)
        path, place = record["audio_path"], self._place(record)
        try:
            waveform = load_audio(path, self.sample_rate, duration=duration + slack, **place)
        except BadSample as error:
            error.sample_id = record["id"]
            raise
        # libsndfile shortens a truncated file without a word: only the manifest knows better.
        missing = duration - waveform.shape[-1] / self.sample_rate
        if missing > tolerance(duration):
            promised = f"the {duration} s of {self.manifest}"
            message = f"cannot read {path}: it ends {missing:.2f} s before {promised}"
            raise BadSample(message, sample_id=record["id"], source=path, reason="truncated")
        if -missing >= slack - 2 / self.sample_rate and slack:
            waveform = waveform[:, : max(1, round(duration * self.sample_rate))]
        return waveform

    def _place(self, record: Record) -> dict[str, Any]:
        return {"channel": self.channel} | {name: record[name] for name in _PLACE if name in record}

    def _say_what_changes(self) -> None:
        """Once per collection: what resampling loses or can not bring back, and how channels become one."""
        wanted = self.sample_rate
        for rate, count in sorted(self._rates.items()):
            lost = f"what lies above {wanted / 2:g} Hz is lost" if rate > wanted else f"they end at {rate / 2:g} Hz"
            if rate != wanted:
                clips = f"{count} of {len(self)} clips"
                _say_once(f"{self.manifest}: {clips} are resampled from {rate} Hz to {wanted} Hz: {lost}")
        if self.channel is None and (num_channels := self._most_channels()) > 1:
            told = f"clips of {num_channels} channels are mixed down to one (channel=0 takes the first)"
            logger.info("%s: %s", self.manifest, told)

    def _most_channels(self) -> int:
        """Of a few clips, evenly spaced: their headers are all that is looked at."""
        most = 1
        for index in np.unique(np.linspace(0, len(self) - 1, _NUM_PROBED).astype(int)):
            record = self.records[int(index)]
            try:
                most = max(most, 1 if "channel" in record else header_of(record).num_channels)
            except Fault:
                continue  # reading it will say so
        return most


class AudioFiles(AudioDataset):
    """Plain audio files and folders as a dataset without labels; an id is the file's path.

    Args:
        paths: a file, a folder (searched deeply), or a list of both.
        sample_rate, channel: as in `AudioDataset`.
    """

    def __init__(self, paths: str | Sequence[str], sample_rate: int, channel: int | None = None) -> None:
        self._paths = paths
        super().__init__(str(paths), sample_rate, channel=channel)

    def _iterate(self, format: str | None) -> Iterator[Record]:
        for file in audio_files(self._paths):
            record: Record = {"id": str(file), "audio_path": str(file.absolute())}
            try:
                complete(record)
            except Fault as fault:
                told = {"id": str(file), "source": str(file), "reason": fault.reason, "detail": fault.detail}
                self.bad_samples.append(told)
            else:
                yield record


@functools.cache
def _say_once(text: str) -> None:
    logger.warning("%s", text)

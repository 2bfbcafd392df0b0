"""From instructions to sounds in files, and what is known about each.  Shapes: B batch, T samples."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from torch import Tensor

from components.generative import FactoredGuidance, OdeSampler
from components.models.audio_generator.generator import AudioGenerator

Record = dict[str, Any]

_BLOCK = 40_000  # samples: libsndfile dies on millions at once in Ogg


class AudioGenerationPredictor:
    """Makes a sound, or several, for every item of a batch.

    A record is `{"id", "task", "instruction", "audio_path", "seconds", "seed", "num_steps", "guidance_scale", "peak",
    "is_clipped", "labels"?: what was asked for}`. A sound depends on `seed`, the item's id and the sample's number
    alone: the same in any batch and on any machine of its kind.

    Args:
        num_steps: of the sampler.
        guidance_scale: how far to go beyond what the conditions say; one, or group of conditions -> scale.
        guidance_groups: name -> condition streams, in the order in which they are taken; by default all in one.
        guidance_rescale, guidance_interval: see `components.generative.FactoredGuidance`.
        sampler: `OdeSampler` or `SchedulerSampler`; Euler by default.
        seed: another one makes other sounds.
        num_samples: sounds for each item.
        folder: where the sounds go; `inference.py` sets it. None: they stay in the records, as `waveform [T]`.
        labels: target -> class names, to say what was asked for.
    """

    def __init__(
        self,
        num_steps: int = 16,
        guidance_scale: float | Mapping[str, float] = 2.0,
        guidance_groups: Mapping[str, Collection[str]] | None = None,
        guidance_rescale: float = 0.0,
        guidance_interval: Sequence[float] = (0.0, 1.0),
        sampler: Any = None,
        seed: int = 0,
        num_samples: int = 1,
        folder: str | Path | None = None,
        labels: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.num_steps, self.guidance_scale, self.guidance_groups = num_steps, guidance_scale, guidance_groups
        self.guidance_rescale, self.guidance_interval = guidance_rescale, tuple(guidance_interval)
        self.sampler = sampler or OdeSampler()
        self.seed, self.num_samples = seed, num_samples
        self.folder = None if folder is None else Path(folder)
        self._one_file: Path | None = None
        self.labels = {target: [str(name) for name in names] for target, names in (labels or {}).items()}

    def __call__(self, model: AudioGenerator, batch: Mapping[str, Any]) -> list[Record]:
        """Records of a batch, `num_samples` for each item."""
        records: list[Record] = []
        for number in range(self.num_samples):
            seeds = torch.tensor([item_seed(self.seed, name, number) for name in batch["id"]])
            waveform, audio_lens = self.make(model, batch, seeds)
            for i, sound in enumerate(waveform[:, 0].float().cpu()):
                record = self._record(batch, i, number, int(seeds[i]))
                records.append(record | self._keep(record["id"], sound[: int(audio_lens[i])], model))
        return records

    def write_to(self, output: Path) -> Path:
        """Let sounds go to the folder named as `output` is without its suffix; or one sound to `output`, if it is one.

        Returns:
            where the records are to go.
        """
        if output.suffix in (".wav", ".flac"):
            self._one_file, self.folder = output, output.parent
            return output.with_suffix(".jsonl")
        self.folder = output.with_suffix("")
        return output

    def make(self, model: AudioGenerator, batch: Mapping[str, Any], seeds: Tensor) -> tuple[Tensor, Tensor]:
        """Sounds `[B, 1, T]` and their lengths `[B]`."""
        groups = self.guidance_groups or {"all": list(model.fuser.slots)}
        start, stop = self.guidance_interval
        guidance = FactoredGuidance(groups, self.guidance_scale, self.guidance_rescale, start, stop)
        return model.generate(batch, seeds, self.num_steps, self.sampler, guidance)

    def wishes(self, batch: Mapping[str, Any]) -> dict[str, list[str | None]]:
        """Target -> what is asked for by each item, by name; None where that is not known."""
        known = {target: ids.tolist() for target, ids in batch.get("targets", {}).items() if target in self.labels}
        return {target: [self.labels[target][k] if k >= 0 else None for k in ids] for target, ids in known.items()}

    def _record(self, batch: Mapping[str, Any], i: int, number: int, seed: int) -> Record:
        name = batch["id"][i] if self.num_samples == 1 else f"{batch['id'][i]}_{number}"
        record: Record = {"id": name, "instruction": batch["instruction"][i], "seed": seed}
        record |= {key: batch[key][i] for key in ("task", "text") if key in batch}
        asked = {target: names[i] for target, names in self.wishes(batch).items()}
        record["labels"] = {target: name for target, name in asked.items() if name is not None}
        return record | {"num_steps": self.num_steps, "guidance_scale": self.guidance_scale}

    def _keep(self, name: str, sound: Tensor, model: AudioGenerator) -> Record:
        rate = model.autoencoder.sample_rate
        peak = float(sound.abs().max())
        told = {"seconds": len(sound) / rate, "sample_rate": rate, "peak": round(peak, 4), "is_clipped": peak > 1.0}
        if self.folder is None:
            return told | {"waveform": sound}
        path = self._one_file or self.folder / f"{file_name(name)}.wav"
        self._one_file = None
        write_sound(path, sound.numpy(), rate)
        return told | {"audio_path": str(path)}

    def score(self, records: Sequence[Record]) -> dict[str, float]:
        """How many seconds were made, and the share of clips beyond full scale."""
        if not records:
            return {}
        return {
            "seconds": sum(record["seconds"] for record in records),
            "clipped": sum(record["is_clipped"] for record in records) / len(records),
        }


def item_seed(seed: int, name: str, number: int) -> int:
    """The seed of one sound, from 0 to 2^62 - 1."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}/{number}".encode()).digest()[:8], "big") >> 2


def file_name(name: str) -> str:
    """An id as the name of a file: what may not be in one becomes `_`, and a hash keeps two ids apart."""
    safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in name)[:100].lstrip(".")
    return safe if safe == name else f"{safe}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def write_sound(path: Path, samples: np.ndarray, sample_rate: int) -> None:
    """Write 16-bit PCM by way of a temporary file; beyond full scale it is cut off, as the record says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    with soundfile.SoundFile(temporary, "w", sample_rate, 1, subtype="PCM_16", format=path.suffix[1:].upper()) as file:
        for start in range(0, max(1, len(samples)), _BLOCK):
            file.write(np.clip(samples[start : start + _BLOCK], -1.0, 1.0))
    temporary.replace(path)

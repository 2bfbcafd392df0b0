"""From instructions to sounds in files, and what is known about each.  Shapes: B batch, T samples."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from torch import Tensor

from components.generative import FactoredGuidance, named_sampler
from components.models.audio_generator.generator import AudioGenerator
from utils.errors import BadSample, UserError
from utils.io import file_name

Record = dict[str, Any]

_BLOCK = 40_000  # samples: libsndfile dies on millions at once in Ogg


class AudioGenerationPredictor:
    """Makes a sound, or several, for every item of a batch.

    A record is `{"id", "reference_id"?: the item's, where it has several sounds, "task", "instruction", "text"?,
    "labels": what was asked for, "seed", "num_steps", "sampler"?, "guidance_scale", "seconds", "sample_rate", "peak",
    "is_clipped", "audio_path": relative to the records' folder}`. A sound depends on `seed`, the item's id and the
    sample's number alone: the same in any batch, on any number of processes and on any machine of its kind.

    Args:
        num_steps: of the sampler.
        guidance_scale: how far to go beyond what the conditions say; one, or group of conditions -> scale.
        guidance_groups: name -> condition streams, in the order in which they are taken; by default all in one.
        guidance_rescale, guidance_interval: see `components.generative.FactoredGuidance`.
        sampler: a name, see `components.generative.named_sampler`; or an `OdeSampler` or `SchedulerSampler`.
        grid: of a sampler by name, see `components.generative.named_grid`.
        seed: another one makes other sounds.
        num_samples: sounds for each item.
        folder: where the sounds go; `inference.py` sets it. None: they stay in the records, as `waveform [T]`.
        labels: target -> class names, to say what was asked for.

    Attributes:
        phases: seconds of the last call, of the sampler's network (`model`), from latents to sound (`decode`), and to
            the disk (`write`).
    """

    def __init__(
        self,
        num_steps: int = 16,
        guidance_scale: float | Mapping[str, float] = 2.0,
        guidance_groups: Mapping[str, Collection[str]] | None = None,
        guidance_rescale: float = 0.0,
        guidance_interval: Sequence[float] = (0.0, 1.0),
        sampler: Any = None,
        grid: str | Mapping[str, float] | None = None,
        seed: int = 0,
        num_samples: int = 1,
        folder: str | Path | None = None,
        labels: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        if num_steps < 1 or num_samples < 1:
            raise UserError(f"num_steps and num_samples: at least 1 each, not {num_steps} and {num_samples}")
        if len(guidance_interval) != 2:
            raise UserError(f"guidance_interval: expected its begin and its end, got {list(guidance_interval)}")
        if grid is not None and not (sampler is None or isinstance(sampler, str)):
            raise UserError("grid: goes with a sampler that is named; give it to the sampler itself")
        self.num_steps, self.guidance_scale, self.guidance_groups = num_steps, guidance_scale, guidance_groups
        self.guidance_rescale, self.guidance_interval = guidance_rescale, tuple(guidance_interval)
        self.sampler, self.grid = sampler, grid
        self.seed, self.num_samples = seed, num_samples
        self.folder = None if folder is None else Path(folder)
        self._one_file: Path | None = None
        self._in_one_file: str | None = None
        self.labels = {target: [str(name) for name in names] for target, names in (labels or {}).items()}
        self.phases: dict[str, float] = {}

    def __call__(self, model: AudioGenerator, batch: Mapping[str, Any]) -> list[Record]:
        """Records of a batch, `num_samples` for each item, item by item."""
        self.phases = {}
        records: list[list[Record]] = [[] for _ in batch["id"]]
        for number in range(self.num_samples):
            seeds = torch.tensor([item_seed(self.seed, name, number) for name in batch["id"]])
            waveform, audio_lens = self.make(model, batch, seeds)
            started = time.perf_counter()
            for i, sound in enumerate(waveform[:, 0].float().cpu()):
                record = self._record(batch, i, number, int(seeds[i]))
                records[i].append(record | self._keep(record, sound[: int(audio_lens[i])], model))
            self._spent("write", started)
        return [record for own in records for record in own]

    def prepare(self, model: AudioGenerator) -> None:
        """Make the sampler, whose library takes seconds to load.

        Raises:
            UserError: the sampler can not sample from what the model was trained for.
        """
        self._sampler_for(model)

    def write_to(self, output: Path) -> Path:
        """Let sounds go to the folder named as `output` is without its suffix; or one sound to `output`, if it is one.

        Returns:
            where the records are to go.
        """
        self._one_file, self._in_one_file = None, None
        if output.suffix in (".wav", ".flac"):
            self._one_file, self.folder = output, output.parent
            return output.with_suffix(".jsonl")
        self.folder = output.with_suffix("")
        return output

    def problem_of(self, record: Record) -> str | None:
        """Why the sound of a record is not what the record says; None where it is."""
        assert self.folder is not None
        path = (self.folder if self._one_file else self.folder.parent) / record["audio_path"]
        try:
            found = soundfile.info(path)
        except (OSError, soundfile.SoundFileError):
            return f"{path} can not be read"
        if (found.frames, found.samplerate) != (
            round(record["seconds"] * record["sample_rate"]),
            record["sample_rate"],
        ):
            return f"{path} has another length or rate than its record says"
        return None

    def evaluate(self, made: Any, options: Mapping[str, Any]) -> str:
        """Scores of a `trainer.prediction.MadeSet`, as a table; see `tasks.audio_generation.evaluation`."""
        from tasks.audio_generation.evaluation import evaluate_sounds

        return evaluate_sounds(made, **options)

    def page(self, model: AudioGenerator, config: Any) -> Any:
        """A page on which to wish for sounds; see `tasks.audio_generation.page`."""
        from tasks.audio_generation.page import WishingWell, build_page

        return build_page(WishingWell(model, self, float(config.canvas_seconds)), list(config.get("examples") or ()))

    def make(self, model: AudioGenerator, batch: Mapping[str, Any], seeds: Tensor) -> tuple[Tensor, Tensor]:
        """Sounds `[B, 1, T]` and their lengths `[B]`.

        Raises:
            UserError: the sampler can not sample from what the model was trained for.
        """
        groups = self.guidance_groups or {"all": list(model.fuser.slots)}
        start, stop = self.guidance_interval
        guidance = FactoredGuidance(groups, self.guidance_scale, self.guidance_rescale, start, stop)
        sampler = _Timed(self._sampler_for(model))
        begin = time.perf_counter()
        sounds = model.generate(batch, seeds, self.num_steps, sampler, guidance)
        _wait_for(sounds[0])
        self._spent("model", begin, sampler.end)
        self._spent("decode", sampler.end)
        return sounds

    def wishes(self, batch: Mapping[str, Any]) -> dict[str, list[str | None]]:
        """Target -> what is asked for by each item, by name; None where that is not known."""
        known = {target: ids.tolist() for target, ids in batch.get("targets", {}).items() if target in self.labels}
        return {target: [self.labels[target][k] if k >= 0 else None for k in ids] for target, ids in known.items()}

    def _sampler_for(self, model: AudioGenerator) -> Any:
        if self.sampler is None or isinstance(self.sampler, str):
            return named_sampler(self.sampler, model.objective, self.grid)
        if self.sampler.prediction != model.objective.prediction:
            trained_for = f"what was trained for {model.objective.prediction}"
            raise UserError(f"sampler: one for {self.sampler.prediction} can not sample from {trained_for}")
        return self.sampler

    def _record(self, batch: Mapping[str, Any], i: int, number: int, seed: int) -> Record:
        name = str(batch["id"][i])
        record: Record = {"id": name} if self.num_samples == 1 else {"id": f"{name}_{number}", "reference_id": name}
        record |= {key: batch[key][i] for key in ("task", "instruction", "text") if key in batch}
        asked = {target: names[i] for target, names in self.wishes(batch).items()}
        record["labels"] = {target: name for target, name in asked.items() if name is not None}
        sampler = (
            self.sampler if isinstance(self.sampler, str) else type(self.sampler).__name__ if self.sampler else None
        )
        how = {"sampler": sampler, "guidance_scale": self.guidance_scale}
        return record | {"seed": seed, "num_steps": self.num_steps} | {k: v for k, v in how.items() if v is not None}

    def _keep(self, record: Record, sound: Tensor, model: AudioGenerator) -> Record:
        rate = model.autoencoder.sample_rate
        if not bool(sound.isfinite().all()):
            message = f"the sound made for {record['id']} holds what is no number"
            raise BadSample(message, sample_id=record["id"], reason="no finite sound")
        peak = float(sound.abs().max()) if len(sound) else 0.0
        told = {"seconds": len(sound) / rate, "sample_rate": rate, "peak": round(peak, 4), "is_clipped": peak > 1.0}
        if self.folder is None:
            return told | {"waveform": sound}
        path, home = self._path(record), self.folder if self._one_file else self.folder.parent
        write_sound(path, sound.numpy(), rate)
        return told | {"audio_path": str(path.relative_to(home))}

    def _path(self, record: Record) -> Path:
        """By task, of which each may have a sound of the same id."""
        assert self.folder is not None
        if self._one_file is None:
            return self.folder / file_name(record.get("task", "sounds")) / f"{file_name(record['id'])}.wav"
        if self._in_one_file not in (None, record["id"]):
            raise UserError(f"output: {self._one_file} is one sound, and there are more: name a .jsonl beside a folder")
        self._in_one_file = record["id"]
        return self._one_file

    def _spent(self, phase: str, begin: float, end: float | None = None) -> None:
        self.phases[phase] = self.phases.get(phase, 0.0) + (end or time.perf_counter()) - begin

    def score(self, records: Sequence[Record]) -> dict[str, float]:
        """How many seconds were made, and the share of clips beyond full scale."""
        if not records:
            return {}
        return {
            "seconds": sum(record["seconds"] for record in records),
            "clipped": sum(record["is_clipped"] for record in records) / len(records),
        }


class _Timed:
    """A sampler that notes when it came to its end."""

    def __init__(self, sampler: Any) -> None:
        self.sampler, self.end = sampler, 0.0

    def sample(self, predict: Any, x_0: Tensor, num_steps: int) -> Tensor:
        latents = self.sampler.sample(predict, x_0, num_steps)
        _wait_for(latents)
        self.end = time.perf_counter()
        return latents


def _wait_for(values: Tensor) -> None:
    if values.is_cuda:
        torch.cuda.synchronize(values.device)


def item_seed(seed: int, name: str, number: int) -> int:
    """The seed of one sound, from 0 to 2^62 - 1."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}/{number}".encode()).digest()[:8], "big") >> 2


def write_sound(path: Path, samples: np.ndarray, sample_rate: int) -> None:
    """Write 16-bit PCM by way of a temporary file; beyond full scale it is cut off, as the record says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    with soundfile.SoundFile(temporary, "w", sample_rate, 1, subtype="PCM_16", format=path.suffix[1:].upper()) as file:
        for start in range(0, max(1, len(samples)), _BLOCK):
            file.write(np.clip(samples[start : start + _BLOCK], -1.0, 1.0))
    temporary.replace(path)

"""How fast predictions were made, and what they took."""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from utils.io import write_json


@dataclass
class Pace:
    """How long batches took, and how much sound was in them."""

    seconds: list[float] = field(default_factory=list)
    audio_seconds: list[float] = field(default_factory=list)
    phases: dict[str, float] = field(default_factory=dict)
    num_items: int = 0
    wall: float = 0.0

    def add(
        self, seconds: float, records: Sequence[Mapping[str, Any]], durations: float, phases: Mapping[str, float]
    ) -> None:
        """A batch; `durations` of its items count where the records tell none."""
        told = [record["seconds"] for record in records if "seconds" in record]
        self.seconds.append(seconds)
        self.audio_seconds.append(float(sum(told)) if told else durations)
        for phase, spent in phases.items():
            self.phases[phase] = self.phases.get(phase, 0.0) + spent

    def leave(self, folder: Path, rank: int, device: str) -> None:
        """Write it for `performance`, with the memory that this process used at most."""
        write_json(folder / f"rank_{rank:05d}.json", vars(self) | {"peak_memory_bytes": peak_memory(device)})


def performance(folder: Path, device: str, num_processes: int, batch_size: int | None) -> dict[str, Any]:
    """Of all processes together, of what they left in `folder`; empty where nobody had anything to do."""
    parts = [json.loads((folder / f"rank_{rank:05d}.json").read_text()) for rank in range(num_processes)]
    seconds, audio = (np.concatenate([part[name] for part in parts]) for name in ("seconds", "audio_seconds"))
    if not len(seconds):
        return {}
    wall = max(part["wall"] for part in parts)
    phases: dict[str, float] = {}
    for part in parts:
        for phase, spent in part["phases"].items():
            phases[phase] = phases.get(phase, 0.0) + spent
    memory = [part["peak_memory_bytes"] for part in parts]
    return {
        "num_items": (num_items := sum(part["num_items"] for part in parts)),
        "items_per_second": num_items / wall,
        "audio_seconds": float(audio.sum()),
        "seconds": {"wall": wall, "predictor": float(seconds.sum()), **phases},
        "rtf": _rtf(seconds, audio, wall, phases),
        "peak_memory_bytes": {where: max(one[where] for one in memory) for where in memory[0]},
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "num_processes": num_processes,
        "num_threads": torch.get_num_threads(),
        "batch_size": batch_size,
    }


def _rtf(seconds: np.ndarray, audio: np.ndarray, wall: float, phases: Mapping[str, float]) -> dict[str, Any]:
    """Seconds of work per second of sound: in all by the clock on the wall, of batches, of phases."""
    if not audio.sum():
        return {}
    of_batches = seconds[audio > 0] / audio[audio > 0]
    p50, p95 = np.quantile(of_batches, [0.5, 0.95])
    split = {phase: spent / float(audio.sum()) for phase, spent in phases.items()}
    return {"total": wall / float(audio.sum()), "p50": float(p50), "p95": float(p95), "phases": split}


def peak_memory(device: str) -> dict[str, int]:
    """Bytes of this process; `cuda` of its device."""
    unit = 1 if sys.platform == "darwin" else 1024
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    cuda = torch.cuda.max_memory_allocated(device) if device.startswith("cuda") else 0
    return {"memory": resident, "cuda": cuda}

"""What each augmentation costs on a CPU, beside a log-mel of 80 bands. `python -m benchmarks.augmentation`.

CPU time of one thread per second of 16 kHz audio, in clips of `--seconds`; contestants interleaved, medians over
rounds, ratios within a round. Recordings are a folder of noises and one of impulse responses, or made on the spot.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from components import augment
from components.features import LogMel

RATE = 16_000
BASE = "log-mel, 80 bands"


def make_recordings(folder: Path) -> tuple[str, str]:
    """Ten noises of 20 s and five responses of 0.5 s, 16 kHz WAV; their two folders."""
    rng, decay = np.random.default_rng(0), np.exp(-np.arange(RATE // 2) / 1_500)
    for kind, count, length in (("noise", 10, 20 * RATE), ("rooms", 5, RATE // 2)):
        (folder / kind).mkdir()
        for i in range(count):
            samples = 0.1 * rng.standard_normal(length) * (decay if kind == "rooms" else 1)
            soundfile.write(folder / kind / f"{i}.wav", samples, RATE)
    return str(folder / "noise"), str(folder / "rooms")


def waveform_steps(noises: str, rooms: str) -> dict[str, Callable[[torch.Tensor, int], torch.Tensor]]:
    import audiomentations as theirs

    library = {
        "AddGaussianNoise": theirs.AddGaussianNoise(p=1.0),
        "AddBackgroundNoise": theirs.AddBackgroundNoise(noises, p=1.0),
        "ApplyImpulseResponse": theirs.ApplyImpulseResponse(rooms, p=1.0),
        "BandPassFilter": theirs.BandPassFilter(p=1.0),
        "Aliasing": theirs.Aliasing(p=1.0),
        "BitCrush": theirs.BitCrush(p=1.0),
        "Limiter": theirs.Limiter(p=1.0),
        "PitchShift": theirs.PitchShift(p=1.0),
    }
    return {
        "RandomGain": augment.RandomGain(),
        "TimeShift": augment.TimeShift(),
        "RandomCrop": augment.RandomCrop(1.0),
        "RandomSpeed": augment.RandomSpeed(),
        "SpeedPerturb": augment.SpeedPerturb([0.9, 1.1]),
        "AddNoise": augment.AddNoise(p=1.0),
        "AddNoiseFromFiles": augment.AddNoiseFromFiles(noises, p=1.0),
        "Reverb": augment.Reverb(rooms, p=1.0),
        **{f"audiomentations.{name}": augment.Audiomentations([step]) for name, step in library.items()},
    }


def batch_steps(batch: dict[str, Any]) -> dict[str, Callable[[], Any]]:
    features, lens, seed = batch["features"], batch["feature_lens"], batch["seed"]
    modules = {
        "SpecAugment": augment.SpecAugment(),
        "SpecAugment with time warp": augment.SpecAugment(max_time_warp=80),
        "FilterAugment": augment.FilterAugment(),
    }
    mixups = {f"Mixup of {field}": augment.Mixup(field=field) for field in ("waveform", "features")}
    calls = {name: lambda module=module: module(features, lens, seed) for name, module in modules.items()}
    return calls | {name: lambda mixup=mixup: mixup(batch) for name, mixup in mixups.items()}


def contestants(seconds: float, noises: str, rooms: str) -> dict[str, tuple[Callable[[], Any], float]]:
    """name -> (a call, the seconds of audio it works on)."""
    waveform = 0.1 * torch.randn(1, round(seconds * RATE))
    log_mel, clip = LogMel(RATE, n_mels=80), waveform.unsqueeze(0)
    clip_lens = torch.tensor([clip.shape[-1]])
    many, many_lens = clip.expand(8, -1, -1).contiguous(), clip_lens.expand(8).contiguous()
    features, feature_lens = log_mel(many, many_lens)
    batch = {"waveform": many, "audio_lens": many_lens, "features": features, "feature_lens": feature_lens}
    calls: dict[str, tuple[Callable[[], Any], float]] = {BASE: (lambda: log_mel(clip, clip_lens), seconds)}
    for name, step in waveform_steps(noises, rooms).items():
        calls[name] = (lambda step=step: step(waveform, RATE), seconds)
    for name, call in batch_steps(batch | {"seed": torch.arange(8)}).items():
        calls[name] = (call, 8 * seconds)
    return calls


def cpu_ms_per_second(call: Callable[[], Any], seconds: float, repeats: int) -> float:
    started = time.process_time()
    for _ in range(repeats):
        call()
    return 1_000 * (time.process_time() - started) / (repeats * seconds)


def measure(calls: dict[str, tuple[Callable[[], Any], float]], rounds: int) -> dict[str, dict[str, float]]:
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(rounds + 1):
        for name, (call, seconds) in calls.items():
            cost = cpu_ms_per_second(call, seconds, repeats=20)
            if round_:  # the first one fills caches
                taken[name].append(cost)
    return {
        name: {
            "ms_per_second": statistics.median(costs),
            "ratio": statistics.median(cost / base for cost, base in zip(costs, taken[BASE])),
        }
        for name, costs in taken.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="length of a clip")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--noises", help="a folder")
    parser.add_argument("--rooms", help="a folder of impulse responses")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/augmentation.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        noises, rooms = make_recordings(Path(folder))
        rows = measure(contestants(options.seconds, options.noises or noises, options.rooms or rooms), options.rounds)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(rows, indent=1))
    print("| augmentation | ms per s of audio | x log-mel |\n|---|---|---|")
    for name, row in rows.items():
        print(f"| {name} | {row['ms_per_second']:.3f} | {row['ratio']:.2f} |")


if __name__ == "__main__":
    main()

"""Decode, resample, gain, 80 log-mels, SpecAugment, batch: ours, Lhotse's K2-style dataset, a plain PyTorch one.

`python -m benchmarks.data_loading [MANIFEST ...] [--rounds 5] [--max-seconds 20]`: one pass of each over the same
clips, in one process with one thread, contestants interleaved round by round in changing order; medians over rounds.
Without manifests, or where they are not there, words and sentences of noise are written to a temporary folder. Then a
training whose loader reads ahead in workers: the share of time it waits for data.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import torchaudio
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from components.augment import RandomGain, SpecAugment
from components.data import AudioDataset, ConcatDataset, PadCollate, write_manifest
from components.data.loader import make_dataloader
from components.data.samplers import DynamicBatchSampler
from components.features import KaldiFbank
from trainer import Callback, StepOutput, Trainer
from trainer.callbacks import Throughput
from trainer.data import plan_loader
from utils.launch import use_cores_considerately

SAMPLE_RATE, N_MELS, LONGEST = 16_000, 80, 20.0
MASKS = {"num_time_masks": 2, "max_time_width": 12, "num_mel_masks": 2, "max_mel_width": 8}
# What a contestant yields: lengths in frames and the padded frames of a batch.
Batches = Iterator[tuple[Tensor, int]]


class FeatureCollate:
    """Features and SpecAugment for a padded batch at once, as they would be on a device."""

    def __init__(self) -> None:
        self.pad, self.fbank, self.mask = PadCollate(), KaldiFbank(SAMPLE_RATE, N_MELS), SpecAugment(**MASKS)

    @torch.no_grad()
    def __call__(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        batch = self.pad(items)
        features, lens = self.fbank(batch.pop("waveform"), batch["audio_lens"])
        return batch | {"features": self.mask(features, lens, batch["seed"]), "feature_lens": lens}


def our_loader(manifests: list[Path], max_seconds: float, workers: int = 0, **settings: Any) -> DataLoader:
    parts = {
        str(path): AudioDataset(path, SAMPLE_RATE, augment={"gain": RandomGain(-6.0, 6.0)}, max_duration=LONGEST)
        for path in manifests
    }
    sampler = partial(DynamicBatchSampler, max_seconds=max_seconds)
    return make_dataloader(
        ConcatDataset(parts), sampler, num_workers=workers, collate_fn=FeatureCollate(), **settings
    )  # fmt: skip


def ours(manifests: list[Path], max_seconds: float) -> Callable[[int], Batches]:
    planned = plan_loader(our_loader(manifests, max_seconds), seed=0)

    def one_pass(number: int) -> Batches:
        planned.start(number)
        for loaded in planned:
            yield loaded.batch["feature_lens"], loaded.batch["features"].shape[1]

    return one_pass


def records(manifests: list[Path]) -> list[dict[str, Any]]:
    found = []
    for path in manifests:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        found += [line | {"audio_path": str(path.parent / line["audio_path"])} for line in lines]
    return [record for record in found if record["duration"] <= LONGEST]


def lhotse(manifests: list[Path], max_seconds: float, num_buckets: int) -> Callable[[int], Batches]:
    from lhotse import CutSet, Fbank, FbankConfig, MonoCut, Recording, SupervisionSegment
    from lhotse.audio import AudioSource
    from lhotse.dataset import DynamicBucketingSampler, K2SpeechRecognitionDataset, OnTheFlyFeatures
    from lhotse.dataset import SpecAugment as TheirSpecAugment
    from lhotse.dataset.cut_transforms import PerturbVolume

    cuts = []
    for i, record in enumerate(records(manifests)):
        rate, seconds = record["sample_rate"], record["duration"]
        source = AudioSource("file", [0], record["audio_path"])
        recording = Recording(f"r{i}", [source], rate, round(seconds * rate), round(seconds * rate) / rate)
        said = SupervisionSegment(f"s{i}", f"r{i}", 0.0, recording.duration, text=record.get("text", ""))
        cuts.append(MonoCut(f"c{i}", 0.0, recording.duration, 0, recording=recording, supervisions=[said]))
    sampler = DynamicBucketingSampler(
        CutSet.from_cuts(cuts).resample(SAMPLE_RATE), max_duration=max_seconds, num_buckets=num_buckets, shuffle=True,
        world_size=1, rank=0,
    )  # fmt: skip
    masks = TheirSpecAugment(
        time_warp_factor=None, num_feature_masks=2, features_mask_size=8, num_frame_masks=2, frames_mask_size=12, p=1.0
    )
    fbank = Fbank(FbankConfig(sampling_rate=SAMPLE_RATE, num_mel_bins=N_MELS))
    dataset = K2SpeechRecognitionDataset(
        cut_transforms=[PerturbVolume(p=1.0, scale_low=0.5, scale_high=2.0)], input_transforms=[masks],
        input_strategy=OnTheFlyFeatures(fbank),
    )  # fmt: skip

    def one_pass(number: int) -> Batches:
        sampler.set_epoch(number)
        for batch in DataLoader(dataset, sampler=sampler, batch_size=None):
            yield batch["supervisions"]["num_frames"], batch["inputs"].shape[1]

    return one_pass


class Plain(Dataset):
    """As a tutorial would write it."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows
        self.masks = [torchaudio.transforms.FrequencyMasking(8), torchaudio.transforms.TimeMasking(12)] * 2

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Tensor:
        samples, rate = soundfile.read(self.rows[index]["audio_path"], dtype="float32", always_2d=True)
        waveform = torch.from_numpy(samples.T).mean(0, keepdim=True)
        waveform = torchaudio.functional.resample(waveform, rate, SAMPLE_RATE) * 2 ** random.uniform(-1, 1)
        mels = torchaudio.compliance.kaldi.fbank(waveform, num_mel_bins=N_MELS, sample_frequency=SAMPLE_RATE)
        for mask in self.masks:
            mels = mask(mels.T.unsqueeze(0)).squeeze(0).T
        return mels


def collate(items: list[Tensor]) -> tuple[Tensor, Tensor]:
    return torch.tensor([len(item) for item in items]), nn.utils.rnn.pad_sequence(items, batch_first=True)


def plain(manifests: list[Path], max_seconds: float) -> Callable[[int], Batches]:
    """Batches of as many clips as ours have on average."""
    rows = records(manifests)
    loader = our_loader(manifests, max_seconds)
    batch_size = round(len(rows) / len(loader))

    def one_pass(number: int) -> Batches:
        torch.manual_seed(number)
        for lens, features in DataLoader(Plain(rows), batch_size, shuffle=True, collate_fn=collate):
            yield lens, features.shape[1]

    return one_pass


def measure(contestants: dict[str, Callable[[int], Batches]], seconds: float, rounds: int) -> list[dict[str, Any]]:
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
    found: dict[str, dict[str, float]] = {}
    for number in range(rounds + 1):
        for name in contestants if number % 2 else reversed(contestants):
            wall, cpu, real, padded, num_batches = time.perf_counter(), time.process_time(), 0, 0, 0
            for lens, longest in contestants[name](number):
                real, padded, num_batches = real + int(lens.sum()), padded + len(lens) * longest, num_batches + 1
            taken[name].append((time.perf_counter() - wall, time.process_time() - cpu))
            found[name] = {"batches": num_batches, "padding": 1 - real / padded, "frames": real}
    rows = []
    for name, times in taken.items():
        times = times[1:]  # the first round fills the file cache
        against = [(base[0] / own[0], base[1] / own[1]) for base, own in zip(taken["ours"][1:], times)]
        rows.append({
            "contestant": name, **found[name],
            "audio_seconds_per_cpu_second": seconds / statistics.median(cpu for _, cpu in times),
            "audio_seconds_per_second": seconds / statistics.median(wall for wall, _ in times),
            "cpu_speed_to_ours": statistics.median(cpu for _, cpu in against),
            "cpu_speed_to_ours_range": [min(cpu for _, cpu in against), max(cpu for _, cpu in against)],
            "wall_speed_to_ours": statistics.median(wall for wall, _ in against),
        })  # fmt: skip
    return rows


class GruTrainer(Trainer):
    """As much arithmetic as a small recogniser has."""

    def training_step(self, batch: Any, batch_idx: int) -> StepOutput:
        out, _ = self.model(batch["features"])
        return StepOutput(out.square().sum(), out.numel())


class Keep(Callback):
    def __init__(self) -> None:
        self.logged: list[dict[str, float]] = []

    def on_log(self, trainer: Any, metrics: dict[str, float]) -> None:
        self.logged.append(dict(metrics))


def data_wait(manifests: list[Path], max_seconds: float, workers: int, steps: int) -> dict[str, float]:
    """Of a training with `workers` that read ahead; the first log, in which they start, is left out."""
    keep = Keep()
    loader = our_loader(
        manifests, max_seconds, workers, prefetch_factor=8 if workers else None, persistent_workers=workers > 0
    )
    GruTrainer(
        nn.GRU(N_MELS, 320, num_layers=3, batch_first=True), loader, partial(torch.optim.AdamW, lr=1e-3),
        callbacks=[Throughput(), keep], max_steps=steps, log_every_n_steps=max(1, steps // 6),
    ).fit()  # fmt: skip
    logged = keep.logged[1:]
    return {
        "workers": workers,
        "steps_per_s": statistics.median(log["perf/steps_per_s"] for log in logged),
        "data_wait": statistics.mean(log["perf/data_wait"] for log in logged),
    }


def synthesise(folder: Path) -> list[Path]:
    """1500 words at 8 kHz, 60 sentences at 16 kHz."""
    rng, manifests = np.random.default_rng(0), []
    for name, rate, count, low, high in (("words", 8000, 1500, 0.2, 1.0), ("sentences", 16_000, 60, 2.0, 12.0)):
        (folder / name).mkdir()
        rows = []
        for i in range(count):
            samples = 0.1 * rng.standard_normal(int(rng.uniform(low, high) * rate))
            soundfile.write(folder / name / f"{i}.flac", samples, rate)
            rows.append({"id": f"{name}{i}", "audio_path": f"{name}/{i}.flac", "duration": len(samples) / rate,
                         "sample_rate": rate, "text": "x"})  # fmt: skip
        write_manifest(folder / f"{name}.jsonl", rows)
        manifests.append(folder / f"{name}.jsonl")
    return manifests


def tables(rows: list[dict[str, Any]], waits: list[dict[str, float]]) -> str:
    lines = [
        "| contestant | batches | padding | audio s per CPU-s | speed to ours (range) | audio s per s | to ours |",
        "|---" * 7 + "|",
    ]
    for row in rows:
        low, high = row["cpu_speed_to_ours_range"]
        lines.append(
            f"| {row['contestant']} | {row['batches']} | {row['padding']:.1%} "
            f"| {row['audio_seconds_per_cpu_second']:.0f} | **{row['cpu_speed_to_ours']:.2f}** ({low:.2f}-{high:.2f}) "
            f"| {row['audio_seconds_per_second']:.0f} | {row['wall_speed_to_ours']:.2f} |"
        )
    lines += ["", "| loader workers | updates per s | waiting for data |", "|---|---|---|"]
    lines += [f"| {wait['workers']} | {wait['steps_per_s']:.1f} | {wait['data_wait']:.1%} |" for wait in waits]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("manifests", type=Path, nargs="*")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max-seconds", type=float, default=20.0, help="of a padded batch")
    parser.add_argument("--buckets", type=int, nargs="+", default=[10, 30], help="of Lhotse's sampler")
    parser.add_argument("--steps", type=int, default=240, help="updates of the training")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/data_loading.json"))
    options = parser.parse_args()
    use_cores_considerately()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        there = [path for path in options.manifests if path.is_file()]
        manifests = there or synthesise(Path(folder))
        rows = records(manifests)
        seconds, limit = sum(row["duration"] for row in rows), options.max_seconds
        contestants = {"ours": ours(manifests, limit)}
        contestants |= {f"Lhotse, {n} buckets": lhotse(manifests, limit, n) for n in options.buckets}
        contestants["PyTorch, random batches"] = plain(manifests, limit)
        measured = measure(contestants, seconds, options.rounds)
        waits = [data_wait(manifests, limit, workers, options.steps) for workers in (0, 1)]
    about = {"torch": torch.__version__, "manifests": [str(path) for path in there] or "synthesised",
             "clips": len(rows), "seconds": seconds, "max_seconds": limit, "rounds": options.rounds}  # fmt: skip
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(about | {"rows": measured, "training": waits}, indent=1))
    print(tables(measured, waits))


if __name__ == "__main__":
    main()

"""CPU time of our frontends per second of audio, against the libraries they agree with. One command:

    python -m benchmarks.features

One thread; the contestants take turns, so that all see the same machine; medians over the rounds. All work on the same
16 clips of `--seconds`: one by one, as data workers see them, and ours also as one batch.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torchaudio
from torch import Tensor
from torchaudio.compliance import kaldi
from transformers import WhisperFeatureExtractor

from components.features import KaldiFbank, LogMel, MelSpectrogram, Mfcc, WhisperLogMel

SAMPLE_RATE = 16_000
NUM_CLIPS = 16


def contestants() -> dict[str, tuple[torch.nn.Module, str, Callable[[Tensor], object]]]:
    """Name -> (ours, the peer's name, the peer as a function of one clip `[1, T]`)."""
    mel = torchaudio.transforms.MelSpectrogram(SAMPLE_RATE, 1024, hop_length=256, n_mels=80)
    log_mel = torchaudio.transforms.MelSpectrogram(
        SAMPLE_RATE, 512, hop_length=160, f_min=20.0, n_mels=64, pad_mode="constant"
    )
    whisper = WhisperFeatureExtractor()

    def extract(clip: Tensor, **padding: object) -> object:
        return whisper(clip[0].numpy(), sampling_rate=SAMPLE_RATE, return_tensors="pt", **padding)

    return {
        "KaldiFbank": (KaldiFbank(SAMPLE_RATE), "torchaudio.compliance.kaldi.fbank",
                       lambda clip: kaldi.fbank(clip * 32768, num_mel_bins=80)),
        "Mfcc": (Mfcc(SAMPLE_RATE), "torchaudio.compliance.kaldi.mfcc", lambda clip: kaldi.mfcc(clip * 32768)),
        "MelSpectrogram": (MelSpectrogram(SAMPLE_RATE, 1024, 256), "torchaudio MelSpectrogram and log",
                           lambda clip: mel(clip).clamp(min=1e-5).log()),
        "LogMel": (LogMel(SAMPLE_RATE), "torchaudio MelSpectrogram and log",
                   lambda clip: torch.log(log_mel(clip) + 1e-5)),
        "WhisperLogMel": (WhisperLogMel(), "WhisperFeatureExtractor, unpadded",
                          lambda clip: extract(clip, padding=False)),
        "WhisperLogMel, 30 s": (WhisperLogMel(chunk_seconds=30), "WhisperFeatureExtractor", extract),
    }  # fmt: skip


def cpu_seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


@torch.inference_mode()
def measure(seconds: float, rounds: int) -> dict[str, dict[str, float | str]]:
    """CPU milliseconds per second of audio, and how many times as much the peer takes."""
    num_samples = round(seconds * SAMPLE_RATE)
    clips = 0.1 * torch.randn(NUM_CLIPS, 1, num_samples, generator=torch.Generator().manual_seed(0))
    audio_lens = torch.full((NUM_CLIPS,), num_samples)
    rows = {}
    for name, (ours, peer, theirs) in contestants().items():
        ways = {
            "clip by clip": lambda ours=ours: [ours(clip[None], audio_lens[:1]) for clip in clips],
            "batch": lambda ours=ours: ours(clips, audio_lens),
            "peer": lambda theirs=theirs: [theirs(clip) for clip in clips],
        }
        taken: dict[str, list[float]] = {way: [] for way in ways}
        for round_ in range(rounds + 1):
            for way, work in ways.items():
                spent = cpu_seconds(work) * 1000 / (seconds * NUM_CLIPS)
                if round_:  # the first one warms up
                    taken[way].append(spent)
        row: dict[str, float | str] = {way: statistics.median(values) for way, values in taken.items()}
        for way in ("clip by clip", "batch"):
            row[f"{way}, ratio"] = statistics.median(t / o for t, o in zip(taken["peer"], taken[way]))
        rows[name] = row | {"name": peer}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/features.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(options.seconds, options.rounds)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(rows, indent=1))
    print("| frontend | clip by clip, ms/s | batch, ms/s | peer, ms/s | ratio | ratio, batch | peer |")
    print("|---|---|---|---|---|---|---|")
    for name, row in rows.items():
        times = " | ".join(f"{row[way]:.3f}" for way in ("clip by clip", "batch", "peer"))
        ratios = " | ".join(f"{row[f'{way}, ratio']:.2f}" for way in ("clip by clip", "batch"))
        print(f"| {name} | {times} | {ratios} | {row['name']} |")


if __name__ == "__main__":
    main()

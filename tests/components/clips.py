"""Small corpora made on the spot."""

from pathlib import Path

import numpy as np
import soundfile

from components.data import write_manifest


def write_clip(path: Path, seconds: float = 0.5, sample_rate: int = 16_000, channels: int = 1, seed: int = 0) -> Path:
    """A tone in faint noise; another seed is another tone."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * sample_rate)) / sample_rate
    tone = 0.3 * np.sin(2 * np.pi * 440 * (1 + seed) * time)
    samples = tone[:, None] + 0.01 * rng.standard_normal((len(time), channels))
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, sample_rate)
    return path


def write_corpus(folder: Path, durations=(0.5, 0.3, 0.4), labels=("yes", "no", "maybe")) -> Path:
    """A manifest of clips `clip0`, `clip1`, ... with the target `word`."""
    records = []
    for i, (seconds, label) in enumerate(zip(durations, labels)):
        write_clip(folder / f"clip{i}.wav", seconds, seed=i)
        audio = {"id": f"clip{i}", "audio_path": f"clip{i}.wav", "duration": seconds, "sample_rate": 16_000}
        records.append(audio | {"labels": {"word": label}})
    write_manifest(folder / "clips.jsonl", records)
    return folder / "clips.jsonl"

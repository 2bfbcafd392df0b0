"""A language of three words, each a tone, that a recogniser learns in seconds; and recognisers of the shipped YAMLs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from hydra.utils import instantiate
from omegaconf import OmegaConf

from components.data import AudioDataset, DynamicBatchSampler, PadCollate, TranscribedDataset, make_dataloader
from components.data import write_manifest as write_records
from components.models.asr import AsrModel
from components.text import Tokenizer, WordTokenizer
from utils.compose import CONFIGS, Request, compose_task
from utils.config import register_omegaconf_resolvers

RATE = 8_000  # Hz
TONES = {"low": 300.0, "mid": 800.0, "high": 2_000.0}  # Hz

# Small sizes of what the tests build.
_FBANK = ("model/frontend=kaldi_fbank_cmvn", "model.frontend.frontend.n_mels=16", "model.encoder.dim=32")
_LAYERS = ("model.encoder.num_layers=2", "model.encoder.feed_forward_dim=32", "model.encoder.subsampling.channels=8")
SIZES = {
    "conformer": _FBANK + _LAYERS,
    "streaming_conformer": ("model/frontend=kaldi_fbank", "model.frontend.n_mels=16", "model.encoder.dim=32", *_LAYERS),
    "recurrent": (*_FBANK, "model.encoder.subsampling.factor=2"),
    "wav2vec2_tiny": ("model/frontend=samples", "model.augment=null", "model.encoder.config.num_hidden_layers=2"),
}


def speak(words: list[str], seed: int) -> np.ndarray:
    """A tone of 0.12 to 0.2 s for each word, with pauses."""
    rng = np.random.default_rng(seed)
    parts = [np.zeros(round(0.08 * RATE))]
    for word in words:
        time = np.arange(round(rng.uniform(0.12, 0.2) * RATE)) / RATE
        parts += [0.3 * np.sin(2 * np.pi * TONES[word] * time), np.zeros(round(rng.uniform(0.06, 0.12) * RATE))]
    sound = np.concatenate(parts)
    return sound + 0.003 * rng.standard_normal(len(sound))


def write_beeps(folder: Path, name: str, number: int, longest: int = 5, seed: int = 0) -> Path:
    """`<name>.jsonl` with `number` utterances of 1 to `longest` words by two speakers."""
    rng, records = np.random.default_rng(seed), []
    (folder / name).mkdir(parents=True)
    for i in range(number):
        words = [str(word) for word in rng.choice(list(TONES), rng.integers(1, longest + 1))]
        sound = speak(words, seed=1000 * seed + i)
        soundfile.write(folder / name / f"{i:03d}.wav", sound, RATE)
        spoken = {"text": " ".join(words), "phonemes": list("".join(words)), "speaker": "ab"[i % 2]}
        audio = {"audio_path": f"{name}/{i:03d}.wav", "duration": len(sound) / RATE, "sample_rate": RATE}
        records.append({"id": f"{name}{i}", **audio, **spoken})
    write_records(folder / f"{name}.jsonl", records)
    return folder / f"{name}.jsonl"


def words() -> WordTokenizer:
    return WordTokenizer(sorted(TONES))


def recogniser(*overrides: str, encoder: str = "conformer", tokenizer: Tokenizer | None = None) -> AsrModel:
    """The model of our YAMLs at a small size: `recogniser("model/heads=hybrid")`."""
    register_omegaconf_resolvers()
    given = ("experiment=asr/common_voice", f"sample_rate={RATE}", f"model/encoder={encoder}", *SIZES[encoder])
    config = compose_task(Request(CONFIGS, "default", (*given, *overrides)))
    config.model.tokenizer = None
    plain = OmegaConf.to_container(config.model, resolve=True)
    del plain["tokenizer"]
    return instantiate(plain, tokenizer=tokenizer or words(), _convert_="all")


def beeps(manifest: Path, tokenizer: Tokenizer | None = None, augment: Any = None, **options: Any) -> Any:
    """The utterances of `write_beeps` as a dataset."""
    return TranscribedDataset(AudioDataset(manifest, RATE, augment=augment), tokenizer or words(), **options)


def loader(dataset: Any, shuffle: bool = False, max_seconds: float = 8.0) -> Any:
    """Batches of like length."""

    def sampler(dataset: Any) -> DynamicBatchSampler:
        return DynamicBatchSampler(dataset, max_seconds=max_seconds, shuffle=shuffle)

    collate = PadCollate(pad_values={"tokens": -100})
    return make_dataloader(dataset, sampler(dataset), collate_fn=collate)

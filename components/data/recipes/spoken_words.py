"""Spoken words: a small corpus that the program speaks itself, with espeak-ng.

What: single English words by synthetic speakers, 16 kHz mono FLAC. A speaker is an accent of espeak-ng, one of its
voice variants and a base pitch; a take varies rate and pitch. Speakers of `val` are heard in no other split; `test` has
further unheard speakers, and held-out takes of the `train` speakers, so that a speaker head can be scored. Records say
which phonemes (espeak-ng's own names, without stress; `sil` for pauses) last how long.
Licence: the recordings are yours. espeak-ng (GPL-3.0-or-later) only runs in a process of its own, through the wheel
`espeakng-loader`.
Source: github.com/espeak-ng/espeak-ng, release 1.52.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from components.data.audio import resample
from components.data.manifest import Record
from components.data.recipes.common import Corpus, is_prepared, whole_folder, write_corpus
from utils.errors import UserError

logger = logging.getLogger(__name__)

CORPUS = Corpus("Spoken words", "the recordings are yours", "https://github.com/espeak-ng/espeak-ng, release 1.52")
SAMPLE_RATE = 16_000
_ESPEAK_RATE = 22_050
_MIN_RATE, _MAX_RATE = 110, 230  # words per minute
_PITCH_SPREAD = 10  # on espeak's scale of 0 to 99
_WORKER = Path(__file__).with_name("espeak_worker.py")


@dataclass(frozen=True, slots=True)
class _Utterance:
    split: str
    speaker: str
    voice: str
    word: str
    take: int
    rate: int
    pitch: int

    @property
    def id(self) -> str:
        return f"{self.speaker}_{self.word}_{self.take}"

    @property
    def request(self) -> dict[str, Any]:
        return {"voice": self.voice, "text": self.word, "rate": self.rate, "pitch": self.pitch}


def prepare_spoken_words(
    output_dir: str,
    words: Sequence[str],
    speakers: Mapping[str, Mapping[str, Mapping[str, Any]]],
    num_takes: Mapping[str, int],
    seed: int = 0,
) -> None:
    """Speak the corpus into `output_dir`: `audio/` and `{train,val,test}.jsonl`. Does nothing if it is there.

    Args:
        speakers: split -> name -> {"voice": accent+variant, "pitch": 0-99}, for the splits train, val and test.
        num_takes: takes of each word per speaker of `train`, `val`, `test`, and `heard`: held-out takes of the train
            speakers for the test split; optionally `heard_val`, the same for the val split.
        seed: of rates and pitches; the same seed gives the same bytes.

    Raises:
        UserError: the wheel is missing, or espeak-ng has no such voice.
    """
    folder = Path(output_dir)
    settings = {"words": list(words), "speakers": speakers, "num_takes": num_takes, "seed": seed, "version": 2}
    if is_prepared(folder, settings):
        return
    if importlib.util.find_spec("espeakng_loader") is None:
        raise UserError('the corpus is spoken by espeak-ng, which is missing: pip install "espeakng-loader==0.2.4"')
    utterances = list(_plan(words, speakers, num_takes, seed))
    num_workers = min(8, os.cpu_count() or 1)
    logger.info("speaking %d words into %s (once)", len(utterances), folder)
    with whole_folder(folder, settings) as temporary, ThreadPoolExecutor(num_workers) as pool:
        parts = list(pool.map(lambda i: _speak_all(utterances[i::num_workers], temporary), range(num_workers)))
        spoken = {record["id"]: record for part in parts for record in part}
        splits: dict[str, list[Record]] = {"train": [], "val": [], "test": []}
        for utterance in utterances:
            splits[utterance.split].append(spoken[utterance.id])
        write_corpus(temporary, CORPUS, splits)


def _plan(
    words: Sequence[str],
    speakers: Mapping[str, Mapping[str, Mapping[str, Any]]],
    num_takes: Mapping[str, int],
    seed: int,
) -> Iterator[_Utterance]:
    for home in ("train", "val", "test"):
        for name, voice in speakers[home].items():
            splits = [home] * num_takes[home]
            if home == "train":
                splits += ["test"] * num_takes["heard"] + ["val"] * num_takes.get("heard_val", 0)
            for word in words:
                for take, split in enumerate(splits):
                    # Each utterance has a generator of its own: adding a word or a speaker changes no other.
                    rng = np.random.default_rng(_key(seed, name, word, take))
                    rate = int(rng.integers(_MIN_RATE, _MAX_RATE + 1))
                    pitch = int(voice["pitch"]) + int(rng.integers(-_PITCH_SPREAD, _PITCH_SPREAD + 1))
                    yield _Utterance(split, name, voice["voice"], word, take, rate, min(99, max(0, pitch)))


def _key(*parts: object) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "little")


def _speak_all(utterances: Sequence[_Utterance], folder: Path) -> list[Record]:
    """Speak through one worker process and write FLAC files; return their records."""
    worker = subprocess.Popen(
        [sys.executable, str(_WORKER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    with worker:
        try:
            return [_write(utterance, *_ask(worker, utterance), folder) for utterance in utterances]
        finally:
            worker.kill()


def _ask(worker: subprocess.Popen[bytes], utterance: _Utterance) -> tuple[np.ndarray, list[tuple[str, int]]]:
    """PCM, and each phoneme with the sample at which it begins."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    assert worker.stderr is not None
    try:
        worker.stdin.write(json.dumps(utterance.request).encode() + b"\n")
        worker.stdin.flush()
        pcm, phonemes = (worker.stdout.read(*struct.unpack("<I", worker.stdout.read(4))) for _ in range(2))
    except (BrokenPipeError, struct.error):
        last_line = (worker.stderr.read().decode(errors="replace").strip() or "no message").splitlines()[-1]
        raise UserError(f"espeak-ng stopped: {last_line}") from None
    if not pcm:
        raise UserError(f"espeak-ng has no voice {utterance.voice!r} (speaker {utterance.speaker})")
    return np.frombuffer(pcm, dtype="<i2"), json.loads(phonemes)


def _timed(phonemes: Sequence[tuple[str, int]], num_samples: int) -> tuple[list[str], list[float]]:
    """Names and seconds of phonemes that fill a clip; pauses that follow each other are one."""
    names, begins = ["sil"], [0]
    for name, begin in phonemes:
        plain = name.lstrip("',%=|")
        plain = "sil" if plain.startswith("_") or not plain else plain
        if begin >= num_samples or (plain == "sil" == names[-1]):
            continue
        if begin <= begins[-1]:  # nothing was heard of the one before
            names[-1] = plain
        else:
            names.append(plain)
            begins.append(begin)
    ends = [*begins[1:], num_samples]
    return names, [round((end - begin) / _ESPEAK_RATE, 6) for begin, end in zip(begins, ends)]


def _write(utterance: _Utterance, pcm: np.ndarray, phonemes: Sequence[tuple[str, int]], folder: Path) -> Record:
    samples = resample(pcm.astype(np.float32) / 32768, _ESPEAK_RATE, SAMPLE_RATE)
    path = folder / "audio" / utterance.speaker / f"{utterance.word}_{utterance.take}.flac"
    path.parent.mkdir(parents=True, exist_ok=True)
    names, durations = _timed(phonemes, len(pcm))
    soundfile.write(path, samples, SAMPLE_RATE, subtype="PCM_16")
    return {
        "id": utterance.id,
        "audio_path": path.relative_to(folder).as_posix(),
        "duration": round(len(samples) / SAMPLE_RATE, 6),
        "sample_rate": SAMPLE_RATE,
        "text": utterance.word,
        "phonemes": names,
        "phoneme_durations": durations,
        "labels": {"word": utterance.word, "speaker": utterance.speaker},
        "speaker": utterance.speaker,
        "split": utterance.split,
        "voice": {"espeak": utterance.voice, "rate": utterance.rate, "pitch": utterance.pitch},
    }

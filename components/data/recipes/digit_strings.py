"""Digit strings: three to seven spoken digits one after the other, with pauses, by one speaker each.

What: recordings of single digits, human (FSDD) or synthetic (espeak-ng), joined with random pauses, level and a faint
noise floor; mono WAV. Records say the text, when each word begins and ends (`word_times`, seconds) and its phones.
Licence: that of the recordings; CC BY-SA 4.0 for FSDD.
Source: `spoken_digits` and `spoken_words` beside this file.
Splits: `train`, `val` and `test` have other takes of the same speakers; `unseen` has speakers that are in none of them.
"""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from components.data.audio import load_audio
from components.data.manifest import Record, read_manifest, resolve_audio_path
from components.data.recipes import spoken_digits, spoken_words
from components.data.recipes.common import Corpus, is_prepared, whole_folder, write_corpus
from utils.errors import UserError

logger = logging.getLogger(__name__)

SPLITS = ("train", "val", "test", "unseen")
_LENGTHS = (3, 7)  # digits, both included
_ENDS = (0.05, 0.25)  # seconds before the first digit, and behind the last
_PAUSES, _LONG_PAUSES, _SHARE_OF_LONG = (0.0, 0.22), (0.3, 0.7), 0.2  # seconds between two
_LEVEL = 0.06  # root mean square of every digit, before the gain of the whole string
_GAINS_DB, _NOISE_DB = (-6.0, 3.0), (-70.0, -45.0)
_FADE = 0.005  # seconds

# IPA of American English, as dictionaries have it.
PRONUNCIATIONS = {
    "zero": "z ɪ ɹ oʊ",
    "one": "w ʌ n",
    "two": "t u",
    "three": "θ ɹ i",
    "four": "f ɔ ɹ",
    "five": "f aɪ v",
    "six": "s ɪ k s",
    "seven": "s ɛ v ə n",
    "eight": "eɪ t",
    "nine": "n aɪ n",
}


@dataclass(frozen=True)
class _Digit:
    """A recording: its word, its phones, `[T]` samples of an even level with soft ends."""

    word: str
    phones: list[str]
    samples: np.ndarray


def prepare_digit_strings(
    output_dir: str,
    digits_dir: str,
    download_dir: str,
    held_out: Sequence[str],
    num_strings: Mapping[str, int],
    data_root: str | None = None,
    sample_rate: int = 8000,
    seed: int = 0,
) -> None:
    """Join human digits: `audio/` and `{train,val,test,unseen}.jsonl` in `output_dir`. Does nothing if they are there.

    Args:
        digits_dir, download_dir, data_root: of `prepare_spoken_digits`, which makes the single digits.
        held_out: the first of these speakers that the corpus has is heard in `unseen`, in all takes, and nowhere else.
        num_strings: split -> how many.
        sample_rate: Hz.
        seed: of everything drawn; the same seed gives the same bytes. More strings leave the first ones as they are.

    Raises:
        UserError: the corpus has none of `held_out`, or no digits for a split; or as `prepare_spoken_digits`.
    """
    settings = _settings(num_strings, sample_rate, seed, digits_dir=digits_dir, held_out=list(held_out))
    if is_prepared(Path(output_dir), settings):
        return
    spoken_digits.prepare_spoken_digits(digits_dir, download_dir, [], data_root)
    takes = {split: read_manifest(Path(digits_dir) / f"{split}.jsonl") for split in ("train", "val", "test")}
    speakers = {record["speaker"] for records in takes.values() for record in records}
    unseen = next((name for name in held_out if name in speakers), None)
    if unseen is None:
        raise UserError(f"held_out: the corpus has none of {', '.join(held_out)}, only {', '.join(sorted(speakers))}")
    sources = {split: [r for r in records if r["speaker"] != unseen] for split, records in takes.items()}
    sources["unseen"] = [r for records in takes.values() for r in records if r["speaker"] == unseen]
    _prepare(Path(output_dir), settings, spoken_digits.CORPUS, sources, Path(digits_dir))


def prepare_spoken_digit_strings(
    output_dir: str,
    digits_dir: str,
    speakers: Mapping[str, Mapping[str, Mapping[str, Any]]],
    num_takes: Mapping[str, int],
    num_strings: Mapping[str, int],
    sample_rate: int = 8000,
    seed: int = 0,
) -> None:
    """The same of digits that the program speaks itself, for a machine without any corpus.

    Args:
        digits_dir, speakers, num_takes: of `prepare_spoken_words`, which speaks the single digits. Voices of `val` and
            `test` are heard in `unseen`; `heard_val` and `heard` are the takes behind `val` and `test`.
        num_strings, sample_rate, seed: see `prepare_digit_strings`.

    Raises:
        UserError: no digits for a split; or as `prepare_spoken_words`.
    """
    settings = _settings(num_strings, sample_rate, seed, digits_dir=digits_dir)
    if is_prepared(Path(output_dir), settings):
        return
    spoken_words.prepare_spoken_words(digits_dir, spoken_digits.WORDS, speakers, num_takes, seed)
    takes = {split: read_manifest(Path(digits_dir) / f"{split}.jsonl") for split in ("train", "val", "test")}
    heard = set(speakers["train"])
    sources = {split: [r for r in records if r["speaker"] in heard] for split, records in takes.items()}
    sources["unseen"] = [r for records in takes.values() for r in records if r["speaker"] not in heard]
    _prepare(Path(output_dir), settings, spoken_words.CORPUS, sources, Path(digits_dir))


def _settings(num_strings: Mapping[str, int], sample_rate: int, seed: int, **more: Any) -> dict[str, Any]:
    if unknown := [split for split in num_strings if split not in SPLITS]:
        raise UserError(f"num_strings.{unknown[0]}: there is no such split, only {', '.join(SPLITS)}")
    return {"num_strings": dict(num_strings), "sample_rate": sample_rate, "seed": seed, "version": 1, **more}


def _prepare(
    folder: Path, settings: dict[str, Any], corpus: Corpus, sources: Mapping[str, Sequence[Record]], home: Path
) -> None:
    logger.info("joining digits to %d strings in %s (once)", sum(settings["num_strings"].values()), folder)
    named = Corpus(f"Digit strings of {corpus.name}", corpus.licence, corpus.source)
    splits: dict[str, list[Record]] = {}
    with whole_folder(folder, settings) as temporary:
        for split, number in settings["num_strings"].items():
            voices = _voices(sources[split], home, settings["sample_rate"])
            if not voices:
                raise UserError(f"num_strings.{split}: there are no digits for this split")
            splits[split] = [_write(temporary, split, index, voices, settings) for index in range(number)]
        write_corpus(temporary, named, splits)


def _voices(records: Sequence[Record], home: Path, sample_rate: int) -> dict[str, dict[str, list[_Digit]]]:
    """Speaker -> word -> recordings, in the order of their names; decoded once for all strings."""
    voices: dict[str, dict[str, list[_Digit]]] = defaultdict(lambda: defaultdict(list))
    for record in sorted(records, key=lambda r: (r["speaker"], r["id"])):
        samples = load_audio(resolve_audio_path(record, home / "train.jsonl"), sample_rate)[0].numpy()
        phones = [phone for phone in record.get("phonemes", ()) if phone != "sil"]
        word = record["labels"]["word"]
        digit = _Digit(word, phones or PRONUNCIATIONS[word].split(), _even(samples, sample_rate))
        voices[record["speaker"]][word].append(digit)
    return voices


def _even(samples: np.ndarray, sample_rate: int) -> np.ndarray:
    """At the common level, faded at both ends so that no joint clicks."""
    length = min(round(_FADE * sample_rate), len(samples) // 4)
    window = np.ones(len(samples), dtype=np.float32)
    window[:length] = np.linspace(0, 1, length, endpoint=False)
    window[len(samples) - length :] = window[:length][::-1]
    level = float(np.sqrt(np.square(samples, dtype=np.float64).mean()))
    return samples * window * np.float32(_LEVEL / max(level, 1e-6))


def _write(
    folder: Path, split: str, index: int, voices: Mapping[str, Mapping[str, list[_Digit]]], settings: Mapping[str, Any]
) -> Record:
    """One string, by a generator of its own; speakers take turns."""
    rng = np.random.default_rng(_key(settings["seed"], split, index))
    speaker = sorted(voices)[index % len(voices)]
    words = sorted(voices[speaker])
    chosen = [words[rng.integers(len(words))] for _ in range(rng.integers(_LENGTHS[0], _LENGTHS[1] + 1))]
    digits = [voices[speaker][word][rng.integers(len(voices[speaker][word]))] for word in chosen]
    samples, times = _join(digits, settings["sample_rate"], rng)
    identifier = f"{split}_{index:05d}_{speaker}"
    path = folder / "audio" / split / f"{identifier}.wav"
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, settings["sample_rate"], subtype="PCM_16")
    return {
        "id": identifier,
        "audio_path": path.relative_to(folder).as_posix(),
        "duration": round(len(samples) / settings["sample_rate"], 6),
        "sample_rate": settings["sample_rate"],
        "text": " ".join(digit.word for digit in digits),
        "word_times": times,
        "phonemes": [phone for digit in digits for phone in digit.phones],
        "speaker": speaker,
        "language": "en",
        "split": split,
    }


def _join(digits: Sequence[_Digit], rate: int, rng: np.random.Generator) -> tuple[np.ndarray, list[list[float]]]:
    """`[T]` samples, and when each digit begins and ends, in seconds."""
    pauses = [rng.uniform(*(_LONG_PAUSES if rng.random() < _SHARE_OF_LONG else _PAUSES)) for _ in digits[1:]]
    before = [rng.uniform(*_ENDS), *pauses]
    parts, times, position = [], [], 0
    for pause, digit in zip(before, digits):
        silence = np.zeros(round(pause * rate), dtype=np.float32)
        begin = position + len(silence)
        position = begin + len(digit.samples)
        parts += [silence, digit.samples]
        times.append([round(begin / rate, 6), round(position / rate, 6)])
    parts.append(np.zeros(round(rng.uniform(*_ENDS) * rate), dtype=np.float32))
    samples = np.concatenate(parts) * _amplitude(rng.uniform(*_GAINS_DB))
    noise = rng.standard_normal(len(samples), dtype=np.float32) * _amplitude(rng.uniform(*_NOISE_DB))
    return np.clip(samples + noise, -1, 1), times


def _amplitude(decibels: float) -> np.float32:
    return np.float32(10 ** (decibels / 20))


def _key(*parts: object) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "little")

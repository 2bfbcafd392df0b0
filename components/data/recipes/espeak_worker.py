"""Speaks with espeak-ng; run as a program of its own: `python espeak_worker.py < requests > answers`.

espeak-ng is GPL, so it is loaded here and nowhere else: the project never links to it, it only talks to this process.

A request is a JSON line {"voice": "en-us+f2", "text": "seven", "rate": words/minute, "pitch": 0-99}; its answer two
blocks of a little-endian uint32 byte count and as many bytes: int16 mono PCM at 22 050 Hz, and JSON, [[phoneme, the
sample at which it begins], ...]. No PCM: there is no such voice.

Two things make an utterance the same bytes whenever it is spoken. The noise of breathy voices is seeded, as by default
the clock seeds it. And each utterance is spoken by a forked child of a parent that never spoke, because espeak-ng keeps
state from one utterance to the next, even through Terminate and Initialize.
"""

import ctypes
import json
import os
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import espeakng_loader

_SYNCHRONOUS, _BY_CHARACTER, _UTF8 = 2, 1, 1
_PHONEME_EVENTS = 1
_RATE, _PITCH = 1, 3
_LIST_TERMINATED, _PHONEME = 0, 7


class _Event(ctypes.Structure):
    """espeak_EVENT of speak_lib.h; the name of a phoneme lies in the last eight bytes."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("name", ctypes.c_char * 8),
    )


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


def load() -> ctypes.CDLL:
    """The library, initialised but silent so far."""
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    if library.espeak_Initialize(_SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), _PHONEME_EVENTS) < 0:
        sys.exit("espeak-ng could not be initialised")
    return library


def speak(library: ctypes.CDLL, voice: str, text: str, rate: int, pitch: int) -> bytes:
    """The two blocks of an answer; the first is empty where `voice` does not exist."""
    variant = voice.partition("+")[2]
    # espeak-ng itself would silently speak without an unknown variant.
    if variant and not (Path(espeakng_loader.get_data_path()) / "voices" / "!v" / variant).is_file():
        return _blocks(b"", [])
    chunks: list[bytes] = []
    phonemes: list[tuple[str, int]] = []

    def collect(samples: object, num_samples: int, events: object) -> int:
        if samples and num_samples > 0:
            chunks.append(ctypes.string_at(samples, 2 * num_samples))
        number = 0
        while events[number].type != _LIST_TERMINATED:
            if events[number].type == _PHONEME:
                phonemes.append((events[number].name.decode(), events[number].sample))
            number += 1
        return 0

    library.espeak_ng_SetRandSeed(ctypes.c_long(1))
    callback = _CALLBACK(collect)
    library.espeak_SetSynthCallback(callback)
    if library.espeak_SetVoiceByName(voice.encode()) != 0:
        return _blocks(b"", [])
    library.espeak_SetParameter(_RATE, rate, 0)
    library.espeak_SetParameter(_PITCH, pitch, 0)
    encoded = text.encode() + b"\0"
    library.espeak_Synth(encoded, len(encoded), 0, _BY_CHARACTER, 0, _UTF8, None, None)
    library.espeak_Synchronize()
    return _blocks(b"".join(chunks), phonemes)


def _blocks(pcm: bytes, phonemes: list[tuple[str, int]]) -> bytes:
    return b"".join(struct.pack("<I", len(block)) + block for block in (pcm, json.dumps(phonemes).encode()))


def in_child(produce: Callable[[], bytes]) -> bytes:
    """What `produce` returns, computed in a forked child."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(produce())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return answer


def main() -> None:
    library = load()
    for line in sys.stdin:
        request = json.loads(line)
        sys.stdout.buffer.write(in_child(lambda request=request: speak(library, **request)))
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()

"""Speaks with espeak-ng; run as a program of its own: `python espeak_worker.py < requests > answers`.

espeak-ng is GPL, so it is loaded here and nowhere else: the project never links to it, it only talks to this process.

A request is a JSON line {"voice": "en-us+f2", "text": "seven", "rate": words/minute, "pitch": 0-99}; its answer a
little-endian uint32 byte count and as many bytes of int16 mono PCM at 22 050 Hz. Zero: there is no such voice.

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
_RATE, _PITCH = 1, 3
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


def load() -> ctypes.CDLL:
    """The library, initialised but silent so far."""
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    if library.espeak_Initialize(_SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), 0) < 0:
        sys.exit("espeak-ng could not be initialised")
    return library


def speak(library: ctypes.CDLL, voice: str, text: str, rate: int, pitch: int) -> bytes:
    """Int16 PCM of `text`; empty where `voice` does not exist."""
    variant = voice.partition("+")[2]
    # espeak-ng itself would silently speak without an unknown variant.
    if variant and not (Path(espeakng_loader.get_data_path()) / "voices" / "!v" / variant).is_file():
        return b""
    chunks: list[bytes] = []

    def collect(samples: object, num_samples: int, _events: object) -> int:
        if samples and num_samples > 0:
            chunks.append(ctypes.string_at(samples, 2 * num_samples))
        return 0

    library.espeak_ng_SetRandSeed(ctypes.c_long(1))
    callback = _CALLBACK(collect)
    library.espeak_SetSynthCallback(callback)
    if library.espeak_SetVoiceByName(voice.encode()) != 0:
        return b""
    library.espeak_SetParameter(_RATE, rate, 0)
    library.espeak_SetParameter(_PITCH, pitch, 0)
    encoded = text.encode() + b"\0"
    library.espeak_Synth(encoded, len(encoded), 0, _BY_CHARACTER, 0, _UTF8, None, None)
    library.espeak_Synchronize()
    return b"".join(chunks)


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
        pcm = in_child(lambda request=request: speak(library, **request))
        sys.stdout.buffer.write(struct.pack("<I", len(pcm)) + pcm)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()

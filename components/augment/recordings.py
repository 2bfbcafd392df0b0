"""Augmentation with recordings: background noise and rooms.  Shapes: C channels, T samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from components.augment.draws import check_probability, check_range, happens, index_below, uniform
from components.augment.level import active_power
from components.augment.sound_files import Paths, Sound, find_sounds, read_sound, warn_once
from utils.errors import UserError

# A file may open and still not decode. So many in a row, and the collection is not worth going on with.
_MAX_DRAWS = 10


def _draw_sound(sounds: list[Sound], read: Callable[[Sound, int], np.ndarray]) -> np.ndarray:
    """`read(sound, channel)` of one drawn at random; of the next one drawn where that can not be decoded.

    The list never changes, so that what is drawn depends on the generator alone and not on what was drawn before.
    """
    error: UserError | None = None
    for _ in range(_MAX_DRAWS):
        sound = sounds[index_below(len(sounds))]
        channel = index_below(sound.num_channels) if sound.channel is None else sound.channel
        try:
            return read(sound, channel)
        except UserError as unreadable:
            error = unreadable
            warn_once(f"not used in augmentation: {error}")
    raise UserError(f"{_MAX_DRAWS} files drawn for augmentation in a row could not be read, the last one: {error}")


class AddNoiseFromFiles:
    """Add a piece of a recorded noise at a signal-to-noise ratio drawn from a range (as MUSAN is used, Snyder et al.
    2015, arXiv:1510.08484).

    A piece as long as the clip is read from a random place of a random file, and only that; a shorter noise is
    repeated from a random place on. Of several channels one is drawn. The ratio is between the mean powers of the
    active parts of both, see `active_power`. A silent clip, or a silent stretch of noise, leaves the clip as it is.

    Args:
        files: a folder (searched deeply), a file, a manifest (`.jsonl`), or a list of these; of any rate and number of
            channels. Files at the rate of the data spare a resampling.
        min_snr_db, max_snr_db: dB.
        p: probability of adding any.

    Raises:
        UserError: there is no noise that can be opened; or (when used) ten drawn in a row could not be decoded.
    """

    def __init__(self, files: Paths, min_snr_db: float = 5.0, max_snr_db: float = 20.0, p: float = 0.5) -> None:
        self.min_snr_db, self.max_snr_db = check_range(min_snr_db, max_snr_db, "AddNoiseFromFiles", "ratio in dB")
        self.p = check_probability(p, "AddNoiseFromFiles")
        self.noises = find_sounds(files, "noises")

    def __call__(self, waveform: Tensor, sample_rate: int) -> Tensor:
        if not happens(self.p):
            return waveform
        snr_db, samples = uniform(self.min_snr_db, self.max_snr_db), waveform.numpy()
        noise = _draw_sound(self.noises, lambda sound, channel: _piece(sound, channel, samples.shape[-1], sample_rate))
        signal_power, noise_power = active_power(samples, sample_rate), active_power(noise[None], sample_rate)
        if not signal_power or not noise_power:
            return waveform
        scale = (signal_power / noise_power) ** 0.5 * 10 ** (-snr_db / 20)
        return torch.from_numpy(samples + noise * np.float32(scale))


def _piece(sound: Sound, channel: int, length: int, sample_rate: int) -> np.ndarray:
    """`length` samples at `sample_rate` from a random place of `sound`, repeated where it is too short."""
    place = uniform(0.0, 1.0)
    needed = -(-length * sound.sample_rate // sample_rate)
    if (spare := sound.num_frames - needed) >= 0:
        start = sound.first_frame + int(place * (spare + 1))
        piece = read_sound(replace(sound, first_frame=start, num_frames=needed), channel, sample_rate)
        return piece[:length] if len(piece) >= length else np.resize(piece, length)
    whole = read_sound(sound, channel, sample_rate)
    return np.resize(np.roll(whole, -int(place * len(whole))), length)


class Reverb:
    """Convolve with a recorded impulse response: a room, a microphone, a telephone.

    The length stays, and so does the place of what is heard: the direct path comes out where it went in, see
    `direct_path`. The power stays too, so that neither the response's gain nor its length changes how loud a clip is.
    Of several channels (microphones) one is drawn.

    Args:
        files: as in `AddNoiseFromFiles`.
        p: probability of it.

    Raises:
        UserError: there is no impulse response that can be opened; or (when used) ten drawn in a row could not be
            decoded or were silent.
    """

    def __init__(self, files: Paths, p: float = 0.5) -> None:
        self.p = check_probability(p, "Reverb")
        self.responses = find_sounds(files, "impulse responses")

    def __call__(self, waveform: Tensor, sample_rate: int) -> Tensor:
        if not happens(self.p):
            return waveform
        response = _draw_sound(self.responses, lambda sound, channel: _response(sound, channel, sample_rate))
        samples = waveform.numpy()
        wet = convolve(samples, response, direct_path(response, sample_rate))
        power, wet_power = (np.square(x, dtype=np.float64).mean() for x in (samples, wet))
        if not power or not wet_power:
            return waveform
        return torch.from_numpy((wet * np.sqrt(power / wet_power)).astype(np.float32))


@lru_cache(maxsize=128)
def _response(sound: Sound, channel: int, sample_rate: int) -> np.ndarray:
    response = read_sound(sound, channel, sample_rate)
    if not response.any():
        raise UserError(f"{sound.path}: this impulse response is silent")
    response.flags.writeable = False
    return response


def direct_path(response: np.ndarray, sample_rate: int) -> int:
    """The sample of `[R]` at which sound comes straight from its source.

    The largest one within 2 ms from the first that is within 20 dB of the largest of all (ISO 3382-1 has the first).
    The largest of all is often a later reflection: in a far microphone's response by tens of milliseconds.
    """
    size = np.abs(response)
    onset = int(np.argmax(size >= 0.1 * size.max()))
    return onset + int(np.argmax(size[onset : onset + max(1, round(0.002 * sample_rate))]))


def convolve(samples: np.ndarray, response: np.ndarray, delay: int) -> np.ndarray:
    """`[C, T]` by `[R]` to `[C, T]`, without the first `delay` samples and what comes behind the clip's end."""
    length = samples.shape[-1]
    size = _fast_size(length + len(response) - 1)
    spectrum = np.fft.rfft(samples, size) * np.fft.rfft(response, size)
    return np.fft.irfft(spectrum, size)[:, delay : delay + length]


def _fast_size(at_least: int) -> int:
    """The smallest number from `at_least` on that is a power of two times 1, 3, 5, 9 or 15: quick to transform."""
    return min(odd << max(0, (-(-at_least // odd) - 1).bit_length()) for odd in (1, 3, 5, 9, 15))

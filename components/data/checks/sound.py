"""From what was measured to what is wrong with a clip's audio."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from components.data.audio import tolerance
from components.data.checks.decode import Facts
from components.data.checks.header import suffix_of_another
from components.data.checks.problems import Problem
from components.data.manifest import Record

_WINDOW_SECONDS = 0.025
_SILENCE_POWER = 1e-9  # -90 dBFS: the last bits of 16
_MOSTLY_SILENT = 0.95
_QUIET_DB = -50.0
_CLIPPED_SHARE, _CLIPPED_SAMPLES = 1e-4, 4
_OVER, _LOSSY_OVER = 1.001, 1.25  # coders overshoot by a little
_LOSSY = ("VORBIS", "OPUS", "MPEG")
_DC = 0.01
_CANCELLED = 0.1
_DEAD_POWER, _ALIVE_POWER = 1e-10, 1e-6
_NARROW = 0.55


def check_file(record: Record, facts: Facts, sample_rate: int | None) -> list[Problem]:
    """What is wrong with the file of a clip; `sample_rate` in Hz is the model's, None for any."""
    if facts.error is not None:
        return [Problem(*facts.error)]
    problems = []
    if suffix_of_another(PurePath(record["audio_path"]).suffix, facts.container) and "member" not in record:
        problems.append(
            Problem("suffix_differs", f"{facts.container} in a {PurePath(record['audio_path']).suffix} file")
        )
    if facts.said:
        problems.append(Problem("decoder_complains", facts.said))
    claimed, there = facts.claimed_samples / facts.rate, facts.num_samples / facts.rate
    if claimed - there > tolerance(claimed):
        shorter = f"the header says {claimed:.2f} s, {there:.2f} s are there"
        whole = "offset" not in record and not facts.placeholder
        problems.append(Problem("truncated" if whole else "header_size", shorter))
    if record.get("sample_rate", facts.rate) != facts.rate:
        problems.append(
            Problem("rate_differs", f"{record['sample_rate']} Hz in the manifest, {facts.rate} Hz in the file")
        )
    if sample_rate is not None and facts.rate < sample_rate:
        problems.append(Problem("low_rate", f"{facts.rate} Hz for a model of {sample_rate} Hz"))
    if record.get("channel", 0) >= facts.channels:
        problems.append(Problem("no_channel", f"channel {record['channel']} of {facts.channels}"))
    return problems


def check_length(record: Record, facts: Facts, seconds: float, shortest: float, longest: float | None) -> list[Problem]:
    """What is wrong with the length of a clip of which `seconds` were decoded, beside the limits a person set."""
    total, offset, promised = facts.num_samples / facts.rate, record.get("offset"), record.get("duration")
    if not seconds:
        if offset is None or not facts.num_samples:
            return [Problem("no_samples", "it holds no samples")]
        return [Problem("bad_offset", f"it begins at {offset:.2f} s of {total:.2f} s")]
    problems = []
    if promised is not None:
        difference = f"{promised:.2f} s in the manifest, {seconds:.2f} s decoded"
        if promised - seconds > tolerance(promised):
            problems.append(Problem("truncated" if offset is None else "bad_offset", difference))
        elif abs(promised - seconds) > max(0.02, 0.01 * seconds):
            problems.append(Problem("duration_differs", difference))
    if seconds < _WINDOW_SECONDS:
        problems.append(Problem("near_empty", f"{seconds * 1000:.2f} ms"))
    elif seconds < shortest:
        problems.append(Problem("too_short", f"{seconds:.2f} s"))
    if longest is not None and seconds > longest:
        problems.append(Problem("too_long", f"{seconds:.2f} s"))
    return problems


def check_sound(record: Record, facts: Facts, measured: dict[str, Any]) -> list[Problem]:
    """What is wrong with the samples of a clip; `measured` as `Meter.result` gives it."""
    problems = []
    if measured["num_non_finite"]:
        problems.append(Problem("non_finite", f"{measured['num_non_finite']} of them"))
    if measured["dc"] >= _DC:
        problems.append(Problem("dc_offset", f"{measured['dc']:.3f} of full scale"))
    if measured["power"] < _SILENCE_POWER:
        text = record.get("text")
        spoken = isinstance(text, str) and text.strip()
        return [*problems, Problem("silent_with_text" if spoken else "silent", _loudest(measured))]
    problems += _check_level(measured, facts.encoding.startswith(_LOSSY))
    problems += _check_channels(measured)
    reach = measured["bandwidth"]
    if reach is not None and reach < _NARROW * facts.rate / 2:
        problems.append(Problem("low_bandwidth", f"nothing above {reach / 1000:.1f} kHz at a rate of {facts.rate} Hz"))
    return problems


def _loudest(measured: dict[str, Any]) -> str:
    return "digital silence" if measured["peak"] == 0 else f"no sound, peak {measured['peak']:.3f}"


def _check_level(measured: dict[str, Any], is_lossy: bool) -> list[Problem]:
    problems = []
    num_values = measured["num_samples"] * len(measured["channel_powers"])
    full_scale = round(measured["full_scale"] * num_values)
    if measured["full_scale"] >= _CLIPPED_SHARE and full_scale >= _CLIPPED_SAMPLES and measured["peak"] <= _OVER:
        problems.append(Problem("clipped", f"{measured['full_scale']:.2%} of the samples"))
    if measured["peak"] > (_LOSSY_OVER if is_lossy else _OVER):
        problems.append(Problem("over_unity", f"peak {measured['peak']:.2f}"))
    if measured["level_db"] is not None and measured["level_db"] < _QUIET_DB:
        problems.append(Problem("quiet", f"{measured['level_db']:.0f} dBFS"))
    if measured["silent"] is not None and measured["silent"] > _MOSTLY_SILENT:
        problems.append(Problem("mostly_silent", f"{measured['silent']:.0%} of the time"))
    return problems


def _check_channels(measured: dict[str, Any]) -> list[Problem]:
    powers = measured["channel_powers"]
    if len(powers) == 1:
        return []
    problems = []
    dead = [str(channel) for channel, power in enumerate(powers) if power < _DEAD_POWER]
    if dead and max(powers) > _ALIVE_POWER:
        problems.append(Problem("dead_channel", f"channel {', '.join(dead)} of {len(powers)}"))
    # The mean of channels that have nothing in common has 1/C of their power.
    alive = len(powers) - len(dead)
    share = measured["mix_power"] / (sum(powers) / len(powers))
    if alive > 1 and share < _CANCELLED / len(powers):
        problems.append(Problem("antiphase", f"their mean has {share:.1%} of their power"))
    return problems

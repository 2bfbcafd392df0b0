"""Every source of a survey decoded once, or remembered, and every clip that uses it judged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from components.data.checks.cache import Cache, version_of
from components.data.checks.decode import Facts, Segment
from components.data.checks.pool import Job, measure_all
from components.data.checks.problems import Problem
from components.data.checks.sound import check_file, check_length, check_sound
from components.data.checks.survey import Split, Survey
from components.data.checks.text import Vocabulary, check_speed
from components.data.manifest import Record


@dataclass(frozen=True)
class Options:
    """What the clips are for.

    Attributes:
        sample_rate: Hz of the model; None for any.
        vocabulary: what it can write; None for anything.
        frame_rate: frames a second that come out of a CTC model; None where it is none.
        min_duration, max_duration: s; clips beyond are dropped.
    """

    sample_rate: int | None = None
    vocabulary: Vocabulary | None = None
    frame_rate: float | None = None
    min_duration: float = 0.0
    max_duration: float | None = None


@dataclass
class Work:
    """How many sources there were: decoded now, and known from the cache."""

    num_decoded: int = 0
    num_cached: int = 0


def examine_audio(
    survey: Survey,
    splits: list[Split],
    cache: Cache,
    options: Options,
    num_processes: int,
    tick: Callable[[], Any] = lambda: None,
) -> Work:
    """Judge the audio of all clips; `tick` is called after every source."""
    work = Work()

    def unknown() -> Iterator[Job]:
        for source, users in survey.sources():
            segments = list(dict.fromkeys(segment for _, segment in users))
            facts = cache.get(source, segments)
            if facts is None:
                yield Job(source, segments, (users, version_of(source)))
                continue
            work.num_cached += 1
            _judge(survey, splits, options, users, dict(zip(segments, facts.segments)), facts)
            tick()

    for job, facts in measure_all(unknown(), num_processes):
        users, version = job.tag
        cache.put(job.source, job.segments, version, facts)
        work.num_decoded += 1
        _judge(survey, splits, options, users, dict(zip(job.segments, facts.segments)), facts)
        tick()
    return work


def _judge(
    survey: Survey,
    splits: list[Split],
    options: Options,
    users: list[tuple[int, Segment]],
    measured: dict[Segment, dict[str, Any]],
    facts: Facts,
) -> None:
    for number, segment in users:
        if facts.error is None:
            survey.add_sound(number, facts, measured[segment])
        if not splits[survey.split_of(number)].is_reference:
            problems = judge_clip(survey.record(number), facts, measured.get(segment), options)
            survey.add_problems(number, problems)


def judge_clip(record: Record, facts: Facts, measured: dict[str, Any] | None, options: Options) -> list[Problem]:
    """What is wrong with a clip; `measured` are those of its segment, None where the source could not be decoded."""
    problems = check_file(record, facts, options.sample_rate)
    if facts.error is not None or measured is None:
        return problems
    seconds = measured["num_samples"] / facts.rate
    lengths = check_length(record, facts, seconds, options.min_duration, options.max_duration)
    codes = {problem.code for problem in problems}
    problems += [problem for problem in lengths if problem.code not in codes]  # truncated by header and by manifest
    if any(problem.code in ("no_samples", "bad_offset", "near_empty") for problem in problems):
        return problems  # there is nothing to listen to
    problems += check_sound(record, facts, measured)
    text = record.get("text")
    if isinstance(text, str) and text.strip():
        problems += check_speed(text, seconds, options.frame_rate, options.vocabulary)
    return problems

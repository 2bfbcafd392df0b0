"""Many sources measured by several processes; none of them can end the run."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from typing import Any, NamedTuple

from components.data.checks.decode import Facts, Segment, Source, measure

_CHUNK = 8
_CHUNKS_AHEAD = 4  # per process


class Job(NamedTuple):
    """A source with the segments to be measured, and whatever the caller wants back with the result."""

    source: Source
    segments: list[Segment]
    tag: Any = None


def measure_all(jobs: Iterable[Job], num_processes: int) -> Iterator[tuple[Job, Facts]]:
    """Facts of every job as they become known, in no order; `jobs` is read a little ahead of them.

    A source on which the decoder crashes takes its process along: what was under way is then measured one at a time, so
    that the source is found and gets the error `decoder_died`.

    Args:
        num_processes: 0 for this process, without that protection.
    """
    if num_processes == 0:
        for job in jobs:
            yield job, measure(job.source, job.segments)
        return
    jobs = iter(jobs)
    while lost := (yield from _until_broken(jobs, num_processes)):
        for job in lost:
            yield job, _alone(job)


def _until_broken(jobs: Iterator[Job], num_processes: int) -> Iterator[tuple[Job, Facts]]:
    """Returns the jobs that were under way when a process died; none where all is done."""
    pending: dict[Future, list[Job]] = {}
    lost: deque[Job] = deque()
    with _pool(num_processes) as pool:
        while not lost:
            while len(pending) < num_processes * _CHUNKS_AHEAD and (chunk := list(islice(jobs, _CHUNK))):
                try:
                    pending[pool.submit(_measure_chunk, [job[:2] for job in chunk])] = chunk
                except BrokenProcessPool:
                    lost.extend(chunk)
                    break
            if not pending:
                break
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                chunk = pending.pop(future)
                try:
                    yield from zip(chunk, future.result())
                except BrokenProcessPool:
                    lost.extend(chunk)
        for future, chunk in pending.items():
            try:
                yield from zip(chunk, future.result())
            except BrokenProcessPool:
                lost.extend(chunk)
    return lost


def _alone(job: Job) -> Facts:
    with _pool(1) as pool:
        try:
            return pool.submit(measure, job.source, job.segments).result()
        except BrokenProcessPool:
            return Facts(
                error=("decoder_died", "the process that decoded it was killed (a damaged file, or no memory)")
            )


def _measure_chunk(chunk: list[tuple[Source, list[Segment]]]) -> list[Facts]:
    return [measure(*job) for job in chunk]


@contextmanager
def _pool(num_processes: int) -> Iterator[ProcessPoolExecutor]:
    # Forked, a process is there at once; elsewhere than on Linux that is not safe.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    pool = ProcessPoolExecutor(num_processes, mp_context=context, initializer=_begin, initargs=(os.getpid(),))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent to handle

    def leave_with_parent() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()

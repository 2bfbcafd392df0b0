"""`python -m components.data extract`: features or latents of a collection, once, by several processes.

The manifest is cut into shards, stretches of it that depend on nothing but the manifest and `--shard-seconds`; every
process takes its share of them and works on one at a time, with one thread. So on CPUs of one kind the files are the
same, bit for bit, by however many processes they were made. Shards that are done stay when it is stopped or killed; the
same command again checks them and goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from components.data.arguments import positive, whole
from components.data.dataset import AudioDataset
from components.data.extractor import Extractor, build_module, load_node, rate_of
from components.data.feature_shards import SETTINGS, BadClip, FeatureShards, ShardSummary, features_key
from components.data.identity import settings_key
from components.data.manifest import to_json
from components.features.statistics import Moments
from utils.errors import UserError
from utils.io import write_json
from utils.launch import pick_device
from utils.logging import set_up_logging

logger = logging.getLogger(__name__)

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# A corpus is cut into so many shards, but none shorter or longer than this by default, in seconds.
_MOST_SHARDS, _SHORTEST, _LONGEST = 64, 60.0, 1800.0
# What must not differ between two commands with one OUT, and how a person calls it.
_SAME = {
    "corpus": "other clips",
    "extractor": "another extractor or other settings of it",
    "code_and_weights": "other code or weights of the extractor, or other versions of its libraries",
    "sample_rate": "another sample rate",
    "dtype": "another dtype",
    "shard_seconds": "another --shard-seconds",
}


@dataclass(frozen=True)
class Job:
    """What is to be done; goes to every process.

    Attributes:
        node: the extractor's config.
        shards: indices of the manifest, shard by shard.
        settings: what `extractor.json` says.
    """

    manifest: str
    out: str
    node: dict[str, Any]
    sample_rate: int
    dtype: str
    batch_seconds: float
    device: str
    num_workers: int
    shards: list[range]
    settings: dict[str, Any] = field(default_factory=dict)


def plan_shards(durations: Sequence[float], shard_seconds: float) -> list[range]:
    """Stretches of about `shard_seconds` (at least one clip each) that cover all clips in order."""
    starts_at = np.concatenate([[0.0], np.cumsum(durations)[:-1]])
    _, firsts = np.unique(np.floor(starts_at / shard_seconds), return_index=True)
    return [range(int(start), int(end)) for start, end in zip(firsts, [*firsts[1:], len(durations)])]


def plan_batches(indices: Sequence[int], durations: Sequence[float], batch_seconds: float) -> list[list[int]]:
    """Clips of like length together, no batch longer than `batch_seconds` with its padding, unless it is one clip."""
    batches: list[list[int]] = []
    for index in sorted(indices, key=lambda index: (durations[index], index)):
        if batches and (len(batches[-1]) + 1) * durations[index] <= batch_seconds:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


class _Clips(Dataset):
    """(index, waveform or what is wrong with it) of each clip."""

    def __init__(self, clips: AudioDataset) -> None:
        self.clips = clips

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> tuple[int, Tensor | BadClip]:
        try:
            return index, self.clips[index]["waveform"]
        except UserError as error:
            return index, _bad(self.clips.records[index], getattr(error, "reason", str(error)), str(error))


def _bad(record: dict[str, Any], reason: str, detail: str) -> BadClip:
    return {"id": record["id"], "source": record["audio_path"], "reason": reason, "detail": detail}


class ShardMaker:
    """Makes shards, one after the other."""

    def __init__(self, job: Job, clips: AudioDataset, extractor: Extractor, go_on: Callable[[], None]) -> None:
        self.job, self.clips, self.extractor, self.go_on = job, clips, extractor, go_on
        self.durations = [float(seconds) for seconds in self.clips.durations]
        self.store = FeatureShards(job.out, len(job.shards))
        self.dtype = _DTYPES[job.dtype]
        self._refused: list[str] = []  # by the extractor, of the shard at hand

    def make(self, number: int) -> None:
        """Compute and write shard `number`.

        Raises:
            UserError: the extractor takes none of its clips, returns what it should not, or lacks memory.
        """
        torch.manual_seed(number)  # for an extractor that draws
        features: dict[int, Tensor] = {}
        bad: dict[int, BadClip] = {}
        self._refused.clear()
        batches = plan_batches(self.job.shards[number], self.durations, self.job.batch_seconds)
        loader = DataLoader(
            _Clips(self.clips), batch_sampler=batches, num_workers=self.job.num_workers, collate_fn=list
        )
        for loaded in loader:
            self.go_on()
            bad |= {index: clip for index, clip in loaded if not isinstance(clip, Tensor)}
            for group in self._groups([(index, clip) for index, clip in loaded if isinstance(clip, Tensor)]):
                for index, clip in self._extract(group):
                    (features if isinstance(clip, Tensor) else bad)[index] = clip
        if self._refused and not features:
            told = f"the extractor could use none of {len(self._refused)} clips of a shard"
            raise UserError(f"{told}; the first: {self._refused[0]}")
        self._write(number, features, bad)

    def _write(self, number: int, features: dict[int, Tensor], bad: dict[int, BadClip]) -> None:
        order = sorted(features)
        moments = None
        for index in order:
            own = Moments.of(features[index])
            moments = own if moments is None else moments.merge(own)
        clips = [(index, len(features[index])) for index in order]
        summary = ShardSummary(clips, [bad[index] for index in sorted(bad)], moments, "")
        self.store.write(number, {features_key(self.clips.records[index]): features[index] for index in order}, summary)

    def _groups(self, clips: list[tuple[int, Tensor]]) -> Iterator[list[tuple[int, Tensor]]]:
        """What can be one batch: without knowledge of padding, clips of one length alone."""
        if self.extractor.knows_lengths:
            yield from [clips] if clips else []
            return
        by_length: dict[int, list[tuple[int, Tensor]]] = {}
        for index, waveform in clips:
            by_length.setdefault(waveform.shape[-1], []).append((index, waveform))
        yield from by_length.values()

    def _extract(self, clips: list[tuple[int, Tensor]]) -> Iterator[tuple[int, Tensor | BadClip]]:
        try:
            results: list[Tensor] = self.extractor([waveform for _, waveform in clips])
        except torch.OutOfMemoryError:
            raise UserError(
                f"{self.extractor.device} has no memory for {len(clips)} clips at once: lower --batch-seconds; the "
                "shards that are done stay"
            ) from None
        except (RuntimeError, ValueError, IndexError) as error:
            if isinstance(error, UserError):
                raise
            if len(clips) > 1:  # which one it is, shows when they come alone
                for clip in clips:
                    yield from self._extract([clip])
                return
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            yield clips[0][0], self._refuse(clips[0][0], "extractor failed", reason)
            return
        for (index, _), result in zip(clips, results, strict=True):
            stored = result.to(self.dtype).clone(memory_format=torch.contiguous_format)
            if not len(stored):
                yield index, self._refuse(index, "extractor gives no frames", "no frames come out")
            elif not bool(stored.isfinite().all()):
                yield index, self._refuse(index, "extractor gives no finite values", f"not finite in {self.job.dtype}")
            else:
                yield index, stored

    def _refuse(self, index: int, reason: str, detail: str) -> BadClip:
        record = self.clips.records[index]
        self._refused.append(f"{record['audio_path']}: {detail}")
        return _bad(record, reason, self._refused[-1])


# ----------------------------------------------------------------------------------------------------------- processes


def _nothing() -> None:
    pass


def make_share(job: Job, clips: AudioDataset, rank: int, world_size: int, go_on: Callable[[], None] = _nothing) -> None:
    """Make the shards `rank`, `rank + world_size`, ..., as far as they are not there; calls `go_on` at each batch."""
    torch.set_num_threads(1)  # sums in another number of threads have other last bits
    device = pick_device(job.device)
    if device == "cuda":
        device = f"cuda:{int(os.environ.get('LOCAL_RANK', rank)) % torch.cuda.device_count()}"
    store = FeatureShards(job.out, len(job.shards))
    numbers = range(rank, len(job.shards), world_size)
    missing = [number for number in numbers if not store.is_done(number)]
    if len(missing) < len(numbers):
        logger.info("%d of %d shards are there and whole", len(numbers) - len(missing), len(numbers))
    if not missing:
        return
    maker = ShardMaker(job, clips, Extractor(build_module("extractor", job.node), device), go_on)
    for place, number in enumerate(missing, start=1):
        maker.make(number)
        logger.info("shard %05d is done (%d of %d)", number, place, len(missing))


def _child(job: Job, rank: int, world_size: int, parent: int, pipe: Connection) -> None:
    def go_on() -> None:
        if os.getppid() != parent:  # it was killed: nobody would come for the rest
            raise SystemExit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its children
    set_up_logging()
    logging.getLogger(AudioDataset.__module__).setLevel(logging.ERROR)  # the parent has said it
    try:
        make_share(job, AudioDataset(job.manifest, job.sample_rate), rank, world_size, go_on)
    except UserError as error:
        pipe.send(str(error))
        raise SystemExit(2) from None


def make_with_processes(job: Job, num_processes: int) -> None:
    """Make all shards with so many processes of this machine.

    Raises:
        UserError: what one of them met, or that one was killed.
    """
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe(duplex=False) for _ in range(num_processes)]
    children = [
        context.Process(target=_child, args=(job, rank, num_processes, os.getpid(), pipes[rank][1]))
        for rank in range(num_processes)
    ]
    try:
        for child in children:
            child.start()
        for _, sending in pipes:
            sending.close()
        waiting = {child.sentinel: child for child in children}
        while waiting:
            for sentinel in multiprocessing.connection.wait(list(waiting)):
                child = waiting.pop(sentinel)  # type: ignore[index]
                child.join()
                if child.exitcode:
                    raise UserError(_what_ended(child, pipes[children.index(child)][0]))
    finally:
        for child in children:
            if child.is_alive():
                child.terminate()
                child.join()


def _what_ended(child: Any, pipe: Connection) -> str:
    try:
        if pipe.poll():
            return pipe.recv()
    except EOFError:
        pass
    how = f"was killed by signal {-child.exitcode}" if child.exitcode < 0 else f"ended with code {child.exitcode}"
    return f"process {child.pid} {how}; the shards that are done stay: run the same command again"


# ------------------------------------------------------------------------------------------------------------- command


def main(arguments: list[str]) -> int:
    """The command; returns its exit code."""
    set_up_logging()
    options = _parse(arguments)
    job, clips = _prepare(options)
    rank, world_size = _place(options)
    try:
        if options.num_processes > 1:
            make_with_processes(job, min(options.num_processes, len(job.shards)))
        else:
            make_share(job, clips, rank, world_size)
    except KeyboardInterrupt:
        print("stopped; the shards that are done stay: the same command goes on", file=sys.stderr)
        return 130
    store = FeatureShards(job.out, len(job.shards))
    if (done := store.num_done()) < len(job.shards):
        print(f"this process's share is done: {done} of {len(job.shards)} shards are there; the last one finishes")
        return 0
    made_of = {name: job.settings[name] for name in ("extractor", "sample_rate", "dtype", "manifest")}
    statistics = store.finish(clips.records, clips.bad_samples, made_of)
    print(
        f"{statistics['num_clips']} clips, {statistics['num_frames']} frames of {statistics['num_features']} features "
        f"in {len(job.shards)} shards, {statistics['num_bad']} clips left out -> {store.folder}"
    )
    return 0


def _prepare(options: argparse.Namespace) -> tuple[Job, AudioDataset]:
    """The job and its clips, with `extractor.json` written or found to be the same."""
    node, stated_rate = load_node("extractor", options.extractor, options.settings, options.sample_rate)
    module = build_module("extractor", node)
    sample_rate = options.sample_rate or stated_rate or rate_of(module)
    if sample_rate is None:
        raise UserError(f"{options.extractor} says no sample rate: give --sample-rate HZ")
    clips = AudioDataset(options.manifest, sample_rate)
    durations = [float(seconds) for seconds in clips.durations]
    shard_seconds = options.shard_seconds or min(max(sum(durations) / _MOST_SHARDS, _SHORTEST), _LONGEST)
    corpus = hashlib.sha256()
    for record in clips.records:
        corpus.update(to_json(record) + b"\n")
    settings = {
        "corpus": corpus.hexdigest(),
        "extractor": node,
        "code_and_weights": settings_key(module),
        "sample_rate": sample_rate,
        "dtype": options.dtype,
        "shard_seconds": shard_seconds,
        "manifest": str(Path(options.manifest).absolute()),
        "num_clips": len(clips),
    }
    shards = plan_shards(durations, shard_seconds)
    _claim(Path(options.out), settings)
    how = {"batch_seconds": options.batch_seconds, "device": options.device, "num_workers": options.num_workers}
    what = {"node": node, "sample_rate": sample_rate, "dtype": options.dtype}
    return Job(str(options.manifest), str(options.out), **what, **how, shards=shards, settings=settings), clips


def _claim(out: Path, settings: dict[str, Any]) -> None:
    path = out / SETTINGS
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        try:
            out.mkdir(parents=True, exist_ok=True)
            write_json(path, settings)
        except OSError as error:
            raise UserError(f"cannot write to {out}: {error.strerror or error}") from None
        return
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}; choose another folder") from None
    for name, difference in _SAME.items():
        if found.get(name) != json.loads(json.dumps(settings[name])):
            raise UserError(f"{out} holds features of {difference} (see {path}): choose another folder, or delete it")


def _place(options: argparse.Namespace) -> tuple[int, int]:
    """Which share of the shards is this process's: by --shard, or by a launcher such as torchrun or accelerate."""
    if options.shard is None:
        launched = int(os.environ.get("WORLD_SIZE", "1"))
        if launched > 1 and options.num_processes > 1:
            raise UserError(f"--num-processes: {launched} processes were launched already; leave it out")
        return int(os.environ.get("RANK", "0")), launched
    index, _, count = options.shard.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise UserError(f"--shard: {options.shard!r} is not I/N with I from 0 to N-1")
    return int(index), int(count)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m components.data extract", description=__doc__)
    add = parser.add_argument
    add("manifest", help="the clips; those that can not be used are left out, counted and listed")
    add("out", help="a folder; the same command again goes on in it")
    add("settings", nargs="*", metavar="key=value", help="settings of the extractor, such as n_mels=40")
    what = "a YAML file with _target_, an option of configs/model/frontend, or a dotted name"
    add("--extractor", required=True, metavar="FILE|NAME", help=what)
    add("--sample-rate", type=positive(int), metavar="HZ", help="of the waveforms, where the extractor does not say it")
    add("--dtype", choices=_DTYPES, default="float32", help="of what is stored")
    most = "most audio at once, with its padding (120)"
    add("--batch-seconds", type=positive(float), default=120.0, metavar="S", help=most)
    stretch = "audio of a file; else a 64th of all, but 60 to 1800"
    add("--shard-seconds", type=positive(float), metavar="S", help=stretch)
    add("--device", default="auto", help="cpu, cuda, cuda:1, ...; auto takes the GPUs where there are some")
    add("--num-workers", type=whole, default=0, metavar="N", help="processes that decode, for each that extracts")
    share = parser.add_mutually_exclusive_group()
    share.add_argument("--num-processes", type=positive(int), default=1, metavar="N", help="processes on this machine")
    number = "this process is number I (from 0) of N, each started by itself"
    share.add_argument("--shard", metavar="I/N", help=number)
    return parser.parse_intermixed_args(arguments)

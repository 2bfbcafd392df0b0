"""Features of a corpus on disk: shards of safetensors, whole or not there, and a manifest over them.

    OUT/extractor.json            what made the features, and of which clips
    OUT/shards/00000.safetensors  id -> [L, D]; a shard is a stretch of the manifest
    OUT/shards/00000.json         its clips, its checksum, its share of the statistics; written when the shard is there
    OUT/bad_samples.jsonl         clips left out, with the reason
    OUT/stats.json                mean and standard deviation over all frames
    OUT/manifest.jsonl            records with `features_path`, `features_key`, `num_frames`; written at the end

Shapes: L frames, D features.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from components.data.manifest import Record, write_manifest
from components.features.statistics import Moments
from utils.errors import UserError
from utils.io import replacing, write_json, write_jsonl

SETTINGS, MANIFEST, STATISTICS, BAD = "extractor.json", "manifest.jsonl", "stats.json", "bad_samples.jsonl"
BadClip = dict[str, str | None]


@dataclass(frozen=True)
class ShardSummary:
    """What is known of a finished shard without opening it.

    Attributes:
        clips: (index in the manifest, num_frames) of each clip in it.
        bad: `{"id", "source", "reason", "detail"}` of each clip left out.
        moments: of all its frames; None where no clip could be used.
        sha256: of its file.
    """

    clips: list[tuple[int, int]]
    bad: list[BadClip]
    moments: Moments | None
    sha256: str

    def save(self, path: Path) -> None:
        moments = self.moments and {
            "count": self.moments.count,
            "mean": self.moments.mean.tolist(),
            "squares": self.moments.squares.tolist(),
        }
        write_json(path, {"clips": self.clips, "bad": self.bad, "moments": moments, "sha256": self.sha256})

    @classmethod
    def load(cls, path: Path) -> ShardSummary | None:
        """What `save` wrote; None where there is none."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if (moments := content["moments"]) is not None:
                mean, squares = (torch.tensor(moments[name], dtype=torch.float64) for name in ("mean", "squares"))
                moments = Moments(moments["count"], mean, squares)
            clips = [(int(index), int(frames)) for index, frames in content["clips"]]
            return cls(clips, content["bad"], moments, content["sha256"])
        except (OSError, ValueError, KeyError, TypeError):
            return None


def features_key(record: Mapping[str, Any]) -> str:
    """Under which name a clip lies in its shard: its id, as far as safetensors takes it."""
    return record["id"] if record["id"] != "__metadata__" else "__metadata__ "


class FeatureShards:
    """The shards in a folder.

    Args:
        folder: OUT.
        num_shards: how many there are when all are done.
    """

    def __init__(self, folder: str | Path, num_shards: int) -> None:
        self.folder, self.num_shards = Path(folder), num_shards

    def path(self, number: int, suffix: str = ".safetensors") -> Path:
        """`OUT/shards/<number><suffix>`."""
        return self.folder / "shards" / f"{number:05}{suffix}"

    def write(self, number: int, features: Mapping[str, Tensor], summary: ShardSummary) -> None:
        """Write a shard: its file, then its summary, so that a summary tells of a whole file.

        Args:
            features: key -> `[L, D]`, contiguous.
            summary: its `sha256` is filled in here.

        Raises:
            UserError: the disk does not take it.
        """
        content = save(dict(features))
        path = self.path(number)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as partial, partial.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            digest = hashlib.sha256(content).hexdigest()
            ShardSummary(summary.clips, summary.bad, summary.moments, digest).save(self.path(number, ".json"))
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}; the shards that are done stay") from None

    def is_done(self, number: int) -> bool:
        """Whether the shard is there as it was written, by its checksum; what is left of another is removed."""
        summary = ShardSummary.load(self.path(number, ".json"))
        try:
            with self.path(number).open("rb") as file:
                if summary is not None and hashlib.file_digest(file, "sha256").hexdigest() == summary.sha256:
                    return True
        except OSError:
            pass
        self.path(number, ".json").unlink(missing_ok=True)
        return False

    def num_done(self) -> int:
        """How many shards have a summary."""
        return sum(self.path(number, ".json").is_file() for number in range(self.num_shards))

    def finish(self, records: Sequence[Record], bad: Sequence[BadClip], made_of: Mapping[str, Any]) -> dict[str, Any]:
        """Write the manifest, the statistics and the list of bad clips over all shards, in the order of the corpus.

        Args:
            records: of the corpus, with absolute paths.
            bad: lines of its manifest that are no record.
            made_of: goes into the statistics, for the reader.

        Returns:
            What `stats.json` says.

        Raises:
            UserError: no clip could be used, or a summary is gone.
        """
        summaries = [ShardSummary.load(self.path(number, ".json")) for number in range(self.num_shards)]
        if missing := [number for number, summary in enumerate(summaries) if summary is None]:
            raise UserError(f"{self.path(missing[0], '.json')} has gone: run the same command again")
        bad = [*bad, *(clip for summary in summaries for clip in summary.bad)]
        write_jsonl(self.folder / BAD, bad)
        moments = [summary.moments for summary in summaries if summary.moments is not None]
        if not moments:
            raise UserError(f"none of {len(bad)} clips could be used; the first: {bad[0]['detail']}")
        num_clips = sum(len(summary.clips) for summary in summaries)
        statistics = _statistics(reduce(Moments.merge, moments)) | {
            "num_clips": num_clips,
            "num_bad": len(bad),
            "made_of": dict(made_of),
        }
        write_json(self.folder / STATISTICS, statistics)
        write_manifest(self.folder / MANIFEST, self._records(summaries, records))
        for partial in (self.folder / "shards").glob(".*.partial"):  # of processes that were killed
            partial.unlink(missing_ok=True)
        return statistics

    def _records(self, summaries: Sequence[ShardSummary], records: Sequence[Record]) -> Iterator[Record]:
        for number, summary in enumerate(summaries):
            path = self.path(number).relative_to(self.folder).as_posix()
            for index, num_frames in summary.clips:
                record = records[index]
                yield record | {
                    "features_path": path,
                    "features_key": features_key(record),
                    "num_frames": num_frames,
                }


def _statistics(moments: Moments) -> dict[str, Any]:
    """Mean and deviation per feature and overall: `components.features.FeatureStatistics` reads them as well."""
    mean, overall_mean = moments.mean, moments.mean.mean()
    overall_var = moments.var.mean() + (mean - overall_mean).square().mean()
    return {
        "mean": mean.tolist(),
        "std": moments.var.sqrt().tolist(),
        "var": moments.var.tolist(),
        "overall_mean": float(overall_mean),
        "overall_std": float(overall_var.sqrt()),
        "num_frames": moments.count,
        "num_features": len(mean),
    }

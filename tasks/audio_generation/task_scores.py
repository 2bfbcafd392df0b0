"""How well each task is done: what was made against its target, beside what the task was given.

Shapes: B batch, T samples, L latent frames.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from components.metrics import Clip, PairedMetric, clips_of_batch
from tasks.audio_generation.judges import Judge
from utils.errors import UserError

# (name of a score, sum over items, number of items)
Score = tuple[str, float, int]
Pairs = tuple[list[Clip], list[Clip]]


class GapMetric:
    """A metric of pairs that looks at the gaps alone, from the first masked frame to the last.

    Args:
        metric: of pairs.
        hop_length: samples of a frame of the mask.
        mask: the field that says what was to be filled, `[B, L]`.
    """

    def __init__(self, metric: PairedMetric, hop_length: int, mask: str = "mask") -> None:
        self.metric, self.hop_length, self.mask = metric, hop_length, mask

    def cut(self, clips: Sequence[Clip], reference: Sequence[Clip], mask: Tensor) -> Pairs:
        """Pairs without what lies outside of the gaps of `mask [B, L]`; an item without a gap is left out."""
        pairs: Pairs = ([], [])
        for row, *pair in zip(mask, clips, reference):
            frames = torch.nonzero(row).flatten().tolist()
            if not frames:
                continue
            gap = slice(frames[0] * self.hop_length, (frames[-1] + 1) * self.hop_length)
            for clip, kept in zip(pair, pairs):
                kept.append(Clip(clip.id, clip.samples[gap], clip.sample_rate, clip.text, clip.labels))
        return pairs


class TaskScores:
    """Scores of a batch by task: `<task>/<metric>`, and `<task>/<target>_recognised` by judges.

    Beside what was made, the same is told of what the task was given (`..._of_input`: the recording to be restored) and
    of the target after the autoencoder (`..._of_copy`: what a perfect generator of latents would reach). Where a metric
    has no score for some pairs, `..._not_scored` is their share.

    Args:
        metrics: task -> name -> a metric of pairs, or a `GapMetric`; null removes one. A task that is not named has no
            scores of its own, one without metrics those of the judges.
        source: the field of the recording that some tasks are given.

    Raises:
        UserError: a metric is not one of pairs.
    """

    def __init__(self, metrics: Mapping[str, Mapping[str, Any] | None], source: str = "source_waveform") -> None:
        self.metrics = {
            task: {name: metric for name, metric in (own or {}).items() if metric is not None}
            for task, own in metrics.items()
        }
        self.source = source
        for task, own in self.metrics.items():
            for name, metric in own.items():
                if not isinstance(metric, (PairedMetric, GapMetric)):
                    raise UserError(f"scores.{task}.{name}: {type(metric).__name__} does not compare pairs")

    def of(
        self,
        batch: Mapping[str, Any],
        made: tuple[Tensor, Tensor],
        autoencoder: Any,
        judges: Sequence[Judge],
        wishes: Mapping[str, Sequence[str | None]],
    ) -> list[Score]:
        """Scores of `made`, waveform `[B, 1, T]` and lens `[B]`; `wishes` are target -> what each item should be."""
        tasks = [task for task in dict.fromkeys(batch.get("task", ())) if task in self.metrics]
        if not tasks:
            return []
        reference = clips_of_batch(batch, autoencoder.sample_rate)
        scores: list[Score] = []
        for suffix, (waveform, lens) in self._heard(batch, made, autoencoder).items():
            sounds = {"id": batch["id"], "waveform": waveform, "audio_lens": lens}
            clips = clips_of_batch(sounds, autoencoder.sample_rate)
            right = recognised(judges, waveform, lens, autoencoder.sample_rate, wishes)
            for task in tasks:
                rows = [i for i, name in enumerate(batch["task"]) if name == task and len(clips[i].samples)]
                found = [(f"{target}_recognised", [said[i] for i in rows]) for target, said in right.items()]
                told = [(name, sum(filter(None, said)), sum(one is not None for one in said)) for name, said in found]
                told += self._compared(task, batch, clips, reference, rows)
                scores += [(f"{task}/{name}{suffix}", total, count) for name, total, count in told if count]
        return scores

    def _heard(
        self, batch: Mapping[str, Any], made: tuple[Tensor, Tensor], autoencoder: Any
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """What scores are told of, by the ends of their names."""
        waveform, lens = batch["waveform"], batch["audio_lens"]
        copy, copy_lens = autoencoder.decode(*autoencoder.encode(waveform, lens))
        heard = {"": made, "_of_copy": (copy, torch.minimum(copy_lens, lens))}
        if self.source in batch and batch[self.source].shape[-1]:
            heard["_of_input"] = (batch[self.source], batch[f"{self.source}_lens"])
        return heard

    def _compared(
        self,
        task: str,
        batch: Mapping[str, Any],
        clips: Sequence[Clip],
        reference: Sequence[Clip],
        rows: Sequence[int],
    ) -> list[Score]:
        scores: list[Score] = []
        chosen: Pairs = [clips[i] for i in rows], [reference[i] for i in rows]
        for name, metric in self.metrics[task].items():
            pairs = chosen
            if isinstance(metric, GapMetric):
                pairs, metric = metric.cut(*chosen, batch[metric.mask][list(rows)]), metric.metric
            metric.reset()
            metric.update(*pairs)
            scores.append((name, sum(score for _, score in metric.scores), len(metric.scores)))
            if skipped := sum(metric.num_skipped.values()):
                scores.append((f"{name}_not_scored", skipped, len(pairs[0])))
        return scores


def recognised(
    judges: Sequence[Judge],
    waveform: Tensor,
    lens: Tensor,
    sample_rate: int,
    wishes: Mapping[str, Sequence[str | None]],
) -> dict[str, list[bool | None]]:
    """Target -> whether all judges that know it hear in each clip what was wished for; None where nothing was."""
    right: dict[str, list[bool | None]] = {}
    for judge in judges:
        for target, heard in judge.classify(waveform, lens, sample_rate).items():
            wished = wishes.get(target, [None] * len(heard))
            said = [None if wish is None else own == wish for own, wish in zip(heard, wished)]
            before = right.get(target, said)
            right[target] = [None if one is None else bool(one and other) for one, other in zip(before, said)]
    return right


def table(scores: Mapping[str, float]) -> str:
    """Scores `<prefix>/<task>/<name>` as lines: a task and a score, what was made, its input, and its copy."""
    rows: dict[tuple[str, str], dict[str, float]] = {}
    for name, value in scores.items():
        parts = name.split("/")
        if len(parts) != 3:
            continue
        base, end = parts[2], ""
        for suffix in ("_of_input", "_of_copy"):
            if base.endswith(suffix):
                base, end = base.removesuffix(suffix), suffix
        rows.setdefault((parts[1], base), {})[end] = value
    if not rows:
        return ""
    width = max(len(f"{task} {base}") for task, base in rows)
    lines = [f"{'':{width}}  {'made':>8}  {'input':>8}  {'copy':>8}"]
    for (task, base), values in sorted(rows.items()):
        cells = (f"{values[end]:8.3f}" if end in values else f"{'':8}" for end in ("", "_of_input", "_of_copy"))
        lines.append(f"{f'{task} {base}':{width}}  " + "  ".join(cells))
    return "\n".join(line.rstrip() for line in lines)

"""Scores of sounds that were made, each with its anchors: what real clips score, and what the autoencoder lets through.

Nothing is made anew: the sounds are read from their files, by way of their records.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

from components.data.generation.instructed import key_of, keyed_draws
from components.data.manifest import Record
from components.metrics import Clip, Collection, Metric, MetricResult, evaluate, paired_references, table
from components.metrics.__main__ import build_metrics
from components.metrics.evaluation import check_metrics, labels_of, text_of
from utils.errors import BadSample, UserError
from utils.io import write_json, write_jsonl

# What a task is scored by unless somebody says; `judged` where there is a judge.
_BY_TASK = {
    "super_resolution": ("judged", "super_resolution"),
    "in_painting": ("judged", "super_resolution"),
    "enhancement": ("judged", "enhancement"),
    "energy_control": ("judged", "control"),
    "pitch_control": ("judged", "control"),
}
_OTHERWISE = ("judged", "unpaired")

Results = dict[str, MetricResult]
Build = Callable[[], dict[str, Metric]]
Samples = Callable[[Mapping[str, Any]], np.ndarray]  # from an item of a dataset to [T]


def evaluate_sounds(
    made: Any,
    metrics: Any = None,
    judge: str | Mapping[str, str] | None = None,
    copy_synthesis: bool = True,
    max_training_clips: int = 2000,
) -> str:
    """Score a set, task by task; into its `.scores.json`, and for each clip into its records (`scores`, `heard`).

    Args:
        made: a `trainer.prediction.MadeSet`.
        metrics: options of `configs/metrics` or YAML files, one or several, for all tasks or `{task: ...}`. None: the
            run's own `metrics`, else what suits a task.
        judge: the folder of a tagging run, or name -> folder. None: those of the run's demonstration.
        copy_synthesis: also score real clips that went through the autoencoder: what a perfect generator of its latents
            would reach.
        max_training_clips: of training clips where a metric looks for copies; they then serve floors as well. 0: none.

    Returns:
        tables to be printed.

    Raises:
        UserError: a metric or judge that is not there, or no sound to score.
    """
    if not made.records:
        raise UserError(f"evaluate: there is no sound in {made.output.records}")
    judges, rate = _judges(made.trained.run, judge), int(made.records[0]["sample_rate"])
    training = made.trained.run.build("train_dataloader.dataset") if max_training_clips else None
    content: dict[str, Any] = {"name": made.name, "records": made.output.records.name, "judges": judges}
    content |= {key: made.summary[key] for key in ("checkpoint", "weights_sha256", "settings_sha256")}
    content |= {"sample_rate": rate, "scores": {}, "sets": {}}
    tasks, tables = list(dict.fromkeys(_task_of(record) for record in made.records)), []
    for task in tasks:
        chosen = metrics.get(task) if isinstance(metrics, Mapping) else metrics
        build = _builder(made.trained.run, task, chosen, judges, rate)
        used = build()
        looks_back = any(metric.needs.training for metric in used.values())
        sets = _Sets(made, task, rate, training if looks_back else None, max_training_clips)
        results, beside = sets.score(used), sets.beside(build, copy_synthesis)
        content["scores"][task] = _told(results, beside)
        content["sets"][task] = sets.counts()
        _note(sets.rows, results, used)
        tables.append((f"{task}\n" if len(tasks) > 1 else "") + table(results, used, beside))
    write_json(made.output.scores, content)
    write_jsonl(made.output.records, made.records)
    return "\n".join([*tables, f"-> {made.output.scores}"])


def _task_of(record: Record) -> str:
    return str(record.get("task", ""))


def _judges(run: Any, judge: str | Mapping[str, str] | None) -> dict[str, str]:
    """Name -> folder of a tagging run."""
    if isinstance(judge, str):
        return {"judge": judge}
    named = judge or OmegaConf.select(run.config, "callbacks.demonstration.judges") or {}
    return {str(name): str(folder) for name, folder in named.items() if folder is not None}


def _told(results: Results, beside: Mapping[str, Results]) -> dict[str, Any]:
    told = {name: result.as_dict() for name, result in results.items()}
    for column, found in beside.items():
        for name, result in found.items():
            told[name][column] = {key: getattr(result, key) for key in ("value", "low", "high", "num_used")}
    return told


def _note(records: Sequence[Record], results: Results, metrics: Mapping[str, Metric]) -> None:
    """Write what single clips scored, and what judges heard in them, into their records."""
    for record in records:
        name = record["id"]
        record["scores"] = {m: result.per_item[name] for m, result in results.items() if name in result.per_item}
        heard = {m: getattr(metric, "heard", {}).get(name) for m, metric in metrics.items()}
        record["heard"] = {m: said for m, said in heard.items() if said is not None}


# -------------------------------------------------------------------------------------------------------------- metrics


def _builder(run: Any, task: str, chosen: Any, judges: Mapping[str, str], rate: int) -> Build:
    """Makes the metrics of a task, new ones at every call."""
    if chosen is None and run.config.get("metrics") is not None:
        return lambda: check_metrics(run.build("metrics"))
    groups = [chosen] if isinstance(chosen, str) else list(chosen or _BY_TASK.get(task, _OTHERWISE))
    if not judges and "judged" in groups:
        if chosen is not None:
            raise UserError("evaluation.judge: name the folder of a tagging run, the run itself has no judge")
        groups = [group for group in groups if group != "judged"]

    def build() -> dict[str, Metric]:
        found: dict[str, Metric] = {}
        for group in groups:
            for number, (judge, folder) in enumerate(judges.items() if group == "judged" else [("", None)]):
                for name, metric in build_metrics(group, sample_rate=rate, judge_dir=folder).items():
                    label = f"{name}_{judge}" if number else name
                    found[label if label not in found else f"{group}_{label}"] = metric
        return found

    return build


# ----------------------------------------------------------------------------------------------------------------- sets


def _target(item: Mapping[str, Any]) -> np.ndarray:
    return item["waveform"][0].numpy()


def _given(item: Mapping[str, Any]) -> np.ndarray:
    return item["source_waveform"][0].numpy()


@dataclass(frozen=True)
class DatasetClips(Collection):
    """Clips as a dataset of the run gives them: at the level and on the canvas that the generator knows.

    Attributes:
        dataset: an `InstructedDataset`.
        indices: of the items, in the order of `records`.
        samples: from an item to what is heard.
    """

    dataset: Any = None
    indices: Sequence[int] = ()
    samples: Samples = _target

    @classmethod
    def of(cls, name: str, dataset: Any, indices: Sequence[int], samples: Samples = _target) -> DatasetClips:
        """The clips at `indices` of the dataset."""
        records = [dataset.records[index] for index in indices]
        return cls(name, records, dataset=dataset, indices=indices, samples=samples)

    def clips(self, indices: Sequence[int], sample_rate: int) -> list[Clip | None]:
        """The clips at `indices` of the collection; None for one that can not be had, which is counted."""
        return [self._clip(place, sample_rate) for place in indices]

    def _clip(self, place: int, sample_rate: int) -> Clip | None:
        record, index = self.records[place], self.indices[place]
        try:
            with keyed_draws(key_of("evaluation", index)):  # a training set draws
                samples = self.samples(self.dataset[index])
        except BadSample as error:
            self.left_out[error.reason] += 1
            return None
        if not len(samples):
            self.left_out["empty"] += 1
            return None
        clip = Clip(record["id"], samples, self.dataset.dataset.sample_rate, text_of(record), labels_of(record))
        if clip.sample_rate == sample_rate:
            return clip
        return Clip(clip.id, clip.at(sample_rate), sample_rate, clip.text, clip.labels)


class _Sets:
    """The sounds of one task, the clips they are held against, and the clips that were trained on."""

    def __init__(self, made: Any, task: str, rate: int, training: Any, max_training_clips: int) -> None:
        self.rate, self.autoencoder = rate, made.trained.model.autoencoder
        self.rows = [record for record in made.records if _task_of(record) == task]
        home = made.output.records.parent.absolute()
        located = [record | {"audio_path": str(home / record["audio_path"])} for record in self.rows]
        self.generated = Collection("generated", located)
        self.dataset = _of_task(made.dataset, task)
        self.reference = _spread("reference", self.dataset, None)
        self.training = _spread("training", _of_task(training, task), max_training_clips)

    def score(self, metrics: Mapping[str, Metric]) -> Results:
        """What was made."""
        return self._scores(metrics, self.generated, self.training)

    def beside(self, build: Build, copies: bool) -> dict[str, Results]:
        """Of the same items: what the recording scores that was to be worked on, and what the target's copy."""
        if self.reference is None:
            return {}
        columns: dict[str, Samples] = {}
        if "source_waveform" in getattr(self.dataset, "streams", {}):
            columns["input"] = _given
        if copies:
            columns["copies"] = self._copy
        wanted = {str(record.get("reference_id") or record["id"]) for record in self.rows}
        indices = [i for i, record in zip(self.reference.indices, self.reference.records) if record["id"] in wanted]
        found = {}
        for column, samples in columns.items():
            metrics = {name: metric for name, metric in build().items() if not metric.needs.training}
            clips = DatasetClips.of(column, self.dataset, indices, samples)
            found[column] = self._scores(metrics, clips, None)
        return found

    def counts(self) -> dict[str, Any]:
        """Of each set how many clips there are, and what was left out."""
        sets = [one for one in (self.generated, self.reference, self.training) if one is not None]
        return {one.name: {"num_clips": len(one.records), "left_out": dict(one.left_out)} for one in sets}

    def _scores(self, metrics: Mapping[str, Metric], generated: Collection, training: Collection | None) -> Results:
        reference = self.reference
        pairs = paired_references(generated.records, reference.records if reference else None, Path())
        return evaluate(metrics, generated, reference, training, pairs, self.rate)

    @torch.inference_mode()
    def _copy(self, item: Mapping[str, Any]) -> np.ndarray:
        device = next((tensor.device for tensor in self.autoencoder.buffers()), torch.device("cpu"))
        waveform = item["waveform"].unsqueeze(0).to(device)
        lens = torch.tensor([waveform.shape[-1]], device=device)
        sound, sound_lens = self.autoencoder.decode(*self.autoencoder.encode(waveform, lens))
        return sound[0, 0, : min(int(sound_lens[0]), waveform.shape[-1])].float().cpu().numpy()


def _of_task(dataset: Any, task: str) -> Any:
    """The part of a dataset of several tasks; as it is, where it has one."""
    return getattr(dataset, "named", {}).get(task, dataset)


def _spread(name: str, dataset: Any, most: int | None) -> DatasetClips | None:
    """All clips of a dataset, or `most` from all over it; None where there are none to be had."""
    if not hasattr(dataset, "records"):
        return None
    total = len(dataset)
    number = total if most is None else min(most, total)
    return DatasetClips.of(name, dataset, [place * total // number for place in range(number)])

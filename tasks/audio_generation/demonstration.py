"""What a generator can do so far: sounds for a fixed set of wishes, heard by judges.  Shapes: B batch, T samples."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from components.metrics.distances import frechet_distance
from tasks.audio_generation.inference import AudioGenerationPredictor, item_seed, write_sound
from tasks.audio_generation.judges import Judge
from tasks.audio_generation.task_scores import TaskScores, table
from trainer import Callback, Every, StepOutput
from utils.io import file_name, write_json
from utils.plot import save_spectrograms

logger = logging.getLogger(__name__)


class Demonstration(Callback):
    """Makes sounds for what validation clips ask for, and says how many judges take for that.

    Metrics: `val/<target>_recognised`, the share of wishes that the judges hear; `val/frechet`, the distance between
    sounds made and real ones in the first judge's embedding; those of `scores`. Sounds, the recordings that they were
    made of, and a sheet of spectrograms go to `exp_dir/samples/step_...` and to the trackers, at the end of a run and
    every `every_n_steps`. Every wish has its seed: the sheets of a run compare.

    Args:
        predictor: how sounds are made, see `AudioGenerationPredictor`; its `labels` name the wishes.
        judges: name -> folder of a tagging run; a target is recognised if all judges that know it say so.
        share: of the clips that are asked for in between, chosen by their ids; at the end all are.
        num_shown: how many of them are written and drawn.
        every_n_steps: updates; it happens at the validation that is due then. None: only at the end.
        scores: task -> name -> a metric of pairs, what tasks are scored by besides; see `TaskScores`.
    """

    def __init__(
        self,
        predictor: AudioGenerationPredictor,
        judges: Mapping[str, str] | None = None,
        share: float = 0.25,
        num_shown: int = 12,
        every_n_steps: int | None = None,
        scores: Mapping[str, Mapping[str, Any] | None] | None = None,
    ) -> None:
        self._predictor, self._share_between, self._num_shown = predictor, share, num_shown
        self._judges = {name: Judge(folder) for name, folder in (judges or {}).items() if folder is not None}
        self._every = Every(n_steps=every_n_steps)
        self._scores = TaskScores(scores or {})
        self._share = 0.0  # of the clips, in this validation
        self._shown: dict[tuple[int, str], list[tuple[str, str, np.ndarray, int]]] = {}  # by the clips' keys, and task
        self._embeddings: dict[str, list[np.ndarray]] = {"made": [], "real": []}
        self._closing_line: str | None = None

    def on_validation_start(self, trainer: Any) -> None:
        self._share, self._shown, self._embeddings = 0.0, {}, {"made": [], "real": []}
        if trainer.global_step == 0 or trainer.exp_dir is None or trainer.fast_dev_run:
            return
        if trainer.is_finished():
            self._share = 1.0
        elif self._every.is_due(trainer.state, trainer.updates_per_epoch):
            self._share = self._share_between

    def on_validation_batch_end(self, trainer: Any, output: StepOutput, batch: dict[str, Any], batch_idx: int) -> None:
        keys = [item_seed(0, name, 0) for name in batch["id"]]
        rows = [i for i, key in enumerate(keys) if key < self._share * 2**62]
        if not rows:
            return
        batch = {name: _taken(value, rows) for name, value in batch.items()}
        model = trainer.unwrapped_model
        seeds = torch.tensor([item_seed(self._predictor.seed, name, 0) for name in batch["id"]])
        made, lens = self._predictor.make(model, batch, seeds)
        rate = model.autoencoder.sample_rate
        self._judge(trainer, batch, made, lens, rate)
        wishes, judges = self._predictor.wishes(batch), list(self._judges.values())
        for name, total, count in self._scores.of(batch, (made, lens), model.autoencoder, judges, wishes):
            trainer.log(name, total, count)
        tasks, given = batch.get("task", [""] * len(rows)), batch.get(self._scores.source)
        for i, row in enumerate(rows):
            name, sound = batch["id"][i], made[i, 0, : int(lens[i])].float().cpu().numpy()
            self._shown[keys[row], tasks[i]] = [(name, batch["instruction"][i], sound, rate)]
            if given is not None and given[i].any():
                self._shown[keys[row], tasks[i]] += [(f"{name}_input", "(its input)", given[i, 0].cpu().numpy(), rate)]
        self._shown = {key: self._shown[key] for key in sorted(self._shown)[: self._num_shown]}

    def _judge(self, trainer: Any, batch: dict[str, Any], made: torch.Tensor, lens: torch.Tensor, rate: int) -> None:
        wishes = self._predictor.wishes(batch)
        right: dict[str, list[bool]] = {}
        for number, judge in enumerate(self._judges.values()):
            verdict = judge.hear(made, lens, rate)
            for target, heard in verdict.classes.items():
                said = [heard[i] == wish for i, wish in enumerate(wishes.get(target, ())) if wish is not None]
                right[target] = [a and b for a, b in zip(right.get(target, said), said)]
            if number == 0:
                real = judge.embed(batch["waveform"], batch["audio_lens"], rate)
                self._embeddings["made"].append(verdict.embedding.numpy())
                self._embeddings["real"].append(real.numpy())
        for target, said in right.items():
            trainer.log(f"{target}_recognised", sum(said), len(said))

    def on_validation_epoch_end(self, trainer: Any) -> None:
        """Collective, as everything that is due is due on all ranks."""
        parts = [{name: np.concatenate(found) for name, found in self._embeddings.items() if found}]
        if not trainer.is_alone and self._judges:
            parts = [None] * trainer.accelerator.num_processes
            own = {name: np.concatenate(found) for name, found in self._embeddings.items() if found}
            torch.distributed.all_gather_object(parts, own)
        made, real = ([part[name] for part in parts if name in part] for name in ("made", "real"))
        if sum(map(len, made)) > 1:
            trainer.log("frechet", frechet_distance(np.concatenate(made), np.concatenate(real)))

    def on_validation_end(self, trainer: Any) -> None:
        if not self._shown or not trainer.is_main_process:
            return
        folder = Path(trainer.exp_dir) / "samples" / f"step_{trainer.global_step:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        files, panels, several = {}, [], len({task for _, task in self._shown}) > 1
        for (_, task), shown in self._shown.items():
            for name, instruction, sound, rate in shown:
                path = folder / f"{file_name(f'{task}_{name}' if several else name)}.wav"
                write_sound(path, sound, rate)
                files[f"samples/{path.stem}"] = path
                panels.append((sound, rate, instruction))
        save_spectrograms(panels, folder / "spectrograms.png")
        scores = {name: value for name, value in trainer.metrics.items() if name.startswith("val/")}
        write_json(folder / "scores.json", scores | {"made_by": self._settings()})
        trainer.log_files(files | {"samples/spectrograms": folder / "spectrograms.png"})
        overall = [name for name in scores if "loss" not in name and name.count("/") == 1]
        reached = "  ".join(f"{name[4:]} {scores[name]:.4g}" for name in overall)
        by_task = "".join(f"\n  {line}" for line in table(scores).splitlines())
        self._closing_line = f"{reached}{by_task}\n  sounds and their spectrograms: {folder}"
        self._shown = {}

    def on_fit_end(self, trainer: Any) -> None:
        if self._closing_line is not None:
            logger.info("%s", self._closing_line)

    def _settings(self) -> dict[str, Any]:
        p = self._predictor
        return {"num_steps": p.num_steps, "guidance_scale": p.guidance_scale, "seed": p.seed}


def _taken(value: Any, rows: list[int]) -> Any:
    """Some items of what a batch has under one name."""
    if isinstance(value, Mapping):
        return {name: _taken(inner, rows) for name, inner in value.items()}
    return value[rows] if isinstance(value, torch.Tensor) else [value[row] for row in rows]

"""What a generator can do so far: sounds for a fixed set of wishes, heard by judges.  Shapes: B batch, T samples."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from components.metrics.distances import frechet_distance
from tasks.audio_generation.inference import AudioGenerationPredictor, file_name, item_seed, write_sound
from tasks.audio_generation.judges import Judge
from trainer import Callback, Every, StepOutput
from utils.io import write_json
from utils.plot import save_spectrograms

logger = logging.getLogger(__name__)


class Demonstration(Callback):
    """Makes sounds for the first validation clips, and says how many a judge takes for what was asked for.

    Metrics: `val/<target>_recognised`, the share of wishes that the judges hear; `val/frechet`, the distance between
    sounds made and real ones in the first judge's embedding. Sounds and a sheet of spectrograms go to
    `exp_dir/samples/step_...` and to the trackers, at the end of a run and every `every_n_steps`. Every wish has its
    seed: the sheets of a run compare.

    Args:
        predictor: how sounds are made, see `AudioGenerationPredictor`; its `labels` name the wishes.
        judges: name -> folder of a tagging run; a target is recognised if all judges that know it say so.
        num_clips: how many validation clips are asked for in between; at the end all are.
        num_shown: how many are written and drawn.
        every_n_steps: updates; it happens at the validation that is due then. None: only at the end.
    """

    def __init__(
        self,
        predictor: AudioGenerationPredictor,
        judges: Mapping[str, str] | None = None,
        num_clips: int = 100,
        num_shown: int = 12,
        every_n_steps: int | None = None,
    ) -> None:
        self._predictor, self._num_clips, self._num_shown = predictor, num_clips, num_shown
        self._judges = {name: Judge(folder) for name, folder in (judges or {}).items() if folder is not None}
        self._every = Every(n_steps=every_n_steps)
        self._left = 0
        self._shown: list[tuple[str, str, np.ndarray, int]] = []
        self._embeddings: dict[str, list[np.ndarray]] = {"made": [], "real": []}

    def on_validation_start(self, trainer: Any) -> None:
        self._left, self._shown, self._embeddings = 0, [], {"made": [], "real": []}
        if trainer.global_step == 0 or trainer.exp_dir is None or trainer.fast_dev_run:
            return
        if trainer.is_finished():
            self._left = 2**62
        elif self._every.is_due(trainer.state, trainer.updates_per_epoch):
            self._left = -(-self._num_clips // trainer.accelerator.num_processes)

    def on_validation_batch_end(self, trainer: Any, output: StepOutput, batch: dict[str, Any], batch_idx: int) -> None:
        if self._left <= 0:
            return
        self._left -= len(batch["id"])
        model = trainer.unwrapped_model
        seeds = torch.tensor([item_seed(self._predictor.seed, name, 0) for name in batch["id"]])
        made, lens = self._predictor.make(model, batch, seeds)
        rate = model.autoencoder.sample_rate
        self._judge(trainer, batch, made, lens, rate)
        for i in range(min(len(made), self._num_shown - len(self._shown))):
            sound = made[i, 0, : int(lens[i])].float().cpu().numpy()
            self._shown.append((batch["id"][i], batch["instruction"][i], sound, rate))

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
        files, panels = {}, []
        for name, instruction, sound, rate in self._shown:
            path = folder / f"{file_name(name)}.wav"
            write_sound(path, sound, rate)
            files[f"samples/{path.stem}"] = path
            panels.append((sound, rate, instruction))
        save_spectrograms(panels, folder / "spectrograms.png")
        scores = {name: value for name, value in trainer.metrics.items() if name.startswith("val/")}
        write_json(folder / "scores.json", scores | {"made_by": self._settings()})
        trainer.log_files(files | {"samples/spectrograms": folder / "spectrograms.png"})
        self._shown = []

    def _settings(self) -> dict[str, Any]:
        p = self._predictor
        return {"num_steps": p.num_steps, "guidance_scale": p.guidance_scale, "seed": p.seed}

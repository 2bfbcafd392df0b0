"""What a model heard and what it made of it, as sounds and pictures.  Shapes: B batch, T samples, K classes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import soundfile
import torch
from torch import Tensor

from trainer import Callback, Every, StepOutput
from utils.plot import save_confusion_matrix, save_spectrogram


class SampleLogger(Callback):
    """Writes some validation clips (.wav), their spectrograms and a confusion matrix per target.

    They go to `exp_dir/samples/step_...` and to the trackers, at the end of a run and every `every_n_epochs`.

    Args:
        sample_rate: of the waveforms, Hz.
        num_samples: how many clips.
        every_n_epochs: also in between; None: only at the end.
        max_classes: targets with more classes get no matrix.
    """

    def __init__(
        self, sample_rate: int, num_samples: int = 6, every_n_epochs: float | None = None, max_classes: int = 60
    ) -> None:
        self._sample_rate, self._num_samples, self._max_classes = sample_rate, num_samples, max_classes
        self._every = Every(n_epochs=every_n_epochs)
        self._is_due = False
        self._confusion: dict[str, Tensor] = {}
        self._clips: list[tuple[str, Tensor, str]] = []

    def on_validation_start(self, trainer: Any) -> None:
        due = trainer.is_finished() or self._every.is_due(trainer.state, trainer.updates_per_epoch)
        self._is_due = due and trainer.global_step > 0 and trainer.exp_dir is not None and not trainer.fast_dev_run
        self._confusion, self._clips = {}, []

    def on_validation_batch_end(self, trainer: Any, output: StepOutput, batch: dict[str, Any], batch_idx: int) -> None:
        if not self._is_due:
            return
        for target, logits in output.outputs.items():
            truth, num_classes = batch["targets"][target], logits.shape[1]
            pairs = (truth * num_classes + logits.argmax(1))[truth >= 0]
            counts = torch.bincount(pairs, minlength=num_classes**2)
            self._confusion[target] = self._confusion.get(target, 0) + counts
        if len(self._clips) < self._num_samples and trainer.is_main_process:
            self._keep_clips(trainer, output, batch)

    def _keep_clips(self, trainer: Any, output: StepOutput, batch: dict[str, Any]) -> None:
        names, logits = trainer.labels[trainer.main_target], output.outputs[trainer.main_target]
        lengths = batch["audio_lens"].tolist()
        for i, identifier in enumerate(batch["id"][: self._num_samples - len(self._clips)]):
            truth = int(batch["targets"][trainer.main_target][i])
            said = names[truth] if truth >= 0 else "?"
            clip = batch["waveform"][i, 0, : lengths[i]].cpu()
            self._clips.append((identifier, clip, f"{said}, heard as {names[int(logits[i].argmax())]}"))

    def on_validation_end(self, trainer: Any) -> None:
        if not self._is_due:
            return
        if not trainer.is_alone:
            for target in sorted(self._confusion):
                torch.distributed.all_reduce(self._confusion[target])
        if trainer.is_main_process:
            folder = Path(trainer.exp_dir) / "samples" / f"step_{trainer.global_step:08d}"
            folder.mkdir(parents=True, exist_ok=True)
            trainer.log_files(self._write_clips(folder) | self._write_matrices(trainer, folder))
        self._confusion, self._clips = {}, []

    def _write_clips(self, folder: Path) -> dict[str, Path]:
        files = {}
        for identifier, clip, title in self._clips:
            stem = folder / re.sub(r"[^\w.-]", "_", identifier)
            sound, picture = stem.with_name(stem.name + ".wav"), stem.with_name(stem.name + ".png")
            soundfile.write(sound, clip.numpy(), self._sample_rate, subtype="PCM_16")
            save_spectrogram(clip.numpy(), self._sample_rate, picture, title)
            files |= {f"samples/{stem.name}": sound, f"spectrograms/{stem.name}": picture}
        return files

    def _write_matrices(self, trainer: Any, folder: Path) -> dict[str, Path]:
        files = {}
        for target, counts in self._confusion.items():
            names = trainer.labels[target]
            if counts.sum() == 0 or len(names) > self._max_classes:
                continue
            path = folder / f"confusion_{target}.png"
            square = counts.reshape(len(names), len(names)).cpu().numpy()
            save_confusion_matrix(square, names, path, f"{target}, update {trainer.global_step}")
            files[f"confusion/{target}"] = path
        return files

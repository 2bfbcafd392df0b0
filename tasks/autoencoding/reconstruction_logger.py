"""Clips and what came back of them, as sounds and pictures.  Shapes: B batch, T samples."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import soundfile
from torch import Tensor

from trainer import Callback, Every, StepOutput
from utils.plot import save_spectrogram


class ReconstructionLogger(Callback):
    """Writes some validation clips and their reconstructions (.wav, and spectrograms).

    They go to `exp_dir/samples/step_...` and to the trackers, at the end of a run and every `every_n_epochs`.

    Args:
        sample_rate: of the waveforms, Hz.
        num_samples: how many clips.
        every_n_epochs: also in between; None: only at the end.
    """

    def __init__(self, sample_rate: int, num_samples: int = 4, every_n_epochs: float | None = None) -> None:
        self._sample_rate, self._num_samples = sample_rate, num_samples
        self._every = Every(n_epochs=every_n_epochs)
        self._is_due = False
        self._clips: list[tuple[str, Tensor]] = []

    def on_validation_start(self, trainer: Any) -> None:
        due = trainer.is_finished() or self._every.is_due(trainer.state, trainer.updates_per_epoch)
        writes = trainer.is_main_process and trainer.exp_dir is not None and not trainer.fast_dev_run
        self._is_due = due and writes and trainer.global_step > 0
        self._clips = []

    def on_validation_batch_end(self, trainer: Any, output: StepOutput, batch: dict[str, Any], batch_idx: int) -> None:
        missing = self._num_samples - len(self._clips) // 2
        if not self._is_due or missing <= 0:
            return
        for i, length in enumerate(batch["audio_lens"].tolist()[:missing]):
            for kind, sound in (("original", batch["waveform"]), ("reconstruction", output.outputs)):
                self._clips.append((f"{batch['id'][i]}_{kind}", sound[i, 0, :length].float().cpu()))

    def on_validation_end(self, trainer: Any) -> None:
        if not self._is_due:
            return
        folder = Path(trainer.exp_dir) / "samples" / f"step_{trainer.global_step:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        files = {}
        for title, clip in self._clips:
            stem = folder / re.sub(r"[^\w.-]", "_", title)
            sound, picture = stem.with_name(stem.name + ".wav"), stem.with_name(stem.name + ".png")
            soundfile.write(sound, clip.clamp(-1, 1).numpy(), self._sample_rate, subtype="PCM_16")
            save_spectrogram(clip.numpy(), self._sample_rate, picture, title)
            files |= {f"samples/{stem.name}": sound, f"spectrograms/{stem.name}": picture}
        trainer.log_files(files)
        self._clips = []

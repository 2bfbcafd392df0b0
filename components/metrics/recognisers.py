"""Recognisers that were trained with this program, as what writes down what is said.  Shapes: B batch, T samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from components.data.audio import resample
from components.data.collate import PadCollate
from components.metrics.embedders import load_safetensors
from utils.errors import UserError
from utils.stored_run import load_run


@lru_cache(maxsize=4)
def _load(exp_dir: str, checkpoint: str | None) -> tuple[Any, Any]:
    """The model, and what turns recordings of it into records."""
    run = load_run(exp_dir)
    if run.config.get("tokenizer") is None:
        raise UserError(f"exp_dir: {run.exp_dir} is no run of a recogniser, its config has no tokenizer")
    model = run.build("model").requires_grad_(False)
    folder = run.checkpoint_dir / (checkpoint or run.default_checkpoint())
    averaged = folder / "ema.safetensors"
    load_safetensors(model, averaged if averaged.is_file() else folder / "model.safetensors")
    return model.eval(), run.build("predictor")


@dataclass(frozen=True)
class StoredRecogniser:
    """A recogniser from its run's folder, with the decoder of its config: a `Transcriber` for `WordErrorRate`.

    Its config is read as data, and builds only what a stored config may build.

    Args:
        exp_dir: the run's folder.
        checkpoint: "best", "last" or a step's folder; the best where there is one.
        batch_size: clips at a time.
    """

    exp_dir: str
    checkpoint: str | None = None
    batch_size: int = 32

    @torch.inference_mode()
    def transcribe(self, waveform: Tensor, audio_lens: Tensor, sample_rate: int) -> list[str]:
        """`[B, 1, T]`, `[B]`, Hz to B texts; clips of another rate are resampled, nothing is heard in an empty one.

        Raises:
            UserError: no such run, or no recogniser's.
        """
        model, predictor = _load(str(Path(self.exp_dir).expanduser()), self.checkpoint)
        rate = model.frontend.sample_rate
        clips = [clip[:, :length].cpu().float() for clip, length in zip(waveform, audio_lens.tolist())]
        if sample_rate != rate:
            clips = [torch.from_numpy(resample(clip[0].numpy(), sample_rate, rate)).unsqueeze(0) for clip in clips]
        texts = [""] * len(clips)
        heard = [number for number, clip in enumerate(clips) if clip.shape[1]]
        for first in range(0, len(heard), self.batch_size):
            part: Sequence[int] = heard[first : first + self.batch_size]
            batch = PadCollate()([{"id": str(number), "waveform": clips[number]} for number in part])
            for number, record in zip(part, predictor(model, batch)):
                texts[number] = record["hypothesis"]
        return texts

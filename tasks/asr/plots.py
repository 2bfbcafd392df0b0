"""Pictures of how a recogniser listens.  Shapes: B batch, H heads, T encoder frames, N tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from components.models.asr import Encoded
from components.models.asr.encoders import record_attention
from trainer import Callback, StepOutput
from utils.io import file_name
from utils.plot import save_heatmaps, save_steps


class RecognitionPlots(Callback):
    """Draws what parts of a model attend to and count, for the first utterances of each validation.

    Pictures go to `exp_dir/samples/step_...` and to the trackers: `attention_<id>.png`, of the encoder's layers and of
    the decoders' (the mean over heads; tokens down, frames across), and `predictor_<id>.png`, the weights that a
    Paraformer's tokens are counted by.

    Args:
        attention, predictor: which of them to draw; without either it does nothing.
        num_shown: utterances.
    """

    def __init__(self, attention: bool = False, predictor: bool = False, num_shown: int = 2) -> None:
        self._attention, self._predictor, self._num_shown = attention, predictor, num_shown

    def on_validation_batch_end(self, trainer: Any, output: StepOutput, batch: dict[str, Any], batch_idx: int) -> None:
        if batch_idx or not (self._attention or self._predictor) or not trainer.is_main_process or not trainer.exp_dir:
            return
        folder = Path(trainer.exp_dir) / "samples" / f"step_{trainer.global_step:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        model, files = trainer.unwrapped_model, []
        few = {name: value[: self._num_shown] for name, value in batch.items() if isinstance(value, (Tensor, list))}
        with torch.no_grad():
            if self._attention:
                files += self._draw_attention(model, few, folder)
            if self._predictor and "paraformer" in model.heads:
                files += self._draw_predictor(model, few, folder)
        trainer.log_files({f"samples/{path.stem}": path for path in files})

    def _draw_attention(self, model: Any, batch: dict[str, Any], folder: Path) -> list[Path]:
        with record_attention(model.encoder) as maps:
            encoded = model.encode(batch)
        panels = {f"encoder {number}": weights for number, weights in maps.items()}
        for name in ("attention", "paraformer"):
            if name in model.heads:
                found = _decoder_maps(model.heads[name], encoded, batch)
                panels |= {f"{name} {number}": weights for number, weights in enumerate(found, start=1)}
        files = []
        for i, identifier in enumerate(batch["id"]):
            length = int(encoded.lens[i])
            drawn = [(_mean_of_heads(weights[i], length, title), title) for title, weights in panels.items()]
            files.append(folder / f"attention_{file_name(identifier)}.png")
            save_heatmaps(drawn, files[-1])
        return files

    def _draw_predictor(self, model: Any, batch: dict[str, Any], folder: Path) -> list[Path]:
        encoded = model.encode(batch)
        trace = model.heads["paraformer"].trace(encoded)
        files = []
        for i, identifier in enumerate(batch["id"]):
            length = int(encoded.lens[i])
            integral = trace.integral[i, :length].cpu().numpy()
            ends = trace.reading.ends[i, : int(trace.reading.lens[i])].tolist()
            files.append(folder / f"predictor_{file_name(identifier)}.png")
            marks = [(end, str(number)) for number, end in enumerate(ends, start=1)]
            save_steps(np.diff(integral, prepend=0.0), integral, marks, files[-1])
        return files


def _decoder_maps(head: Any, encoded: Encoded, batch: dict[str, Any]) -> Sequence[Tensor]:
    if hasattr(head, "trace"):
        return head.trace(encoded).attention
    return head.attention_maps(encoded, batch["tokens"], batch["token_lens"])


def _mean_of_heads(weights: Tensor, length: int, title: str) -> np.ndarray:
    """`[H, N or T, T]` to `[N or T, length]`, without padding."""
    mean = weights.float().mean(0)[:, :length]
    return (mean[:length] if title.startswith("encoder") else mean).cpu().numpy()

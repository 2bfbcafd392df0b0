"""What was said beside what was heard, while a recogniser learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainer import Callback, StepOutput
from utils.io import write_text


class TranscriptSamples(Callback):
    """Writes the first utterances of each validation, reference above hypothesis, to
    `exp_dir/samples/step_.../transcripts.txt`; of several loaders to `transcripts_<loader>.txt`.

    Args:
        num_shown: utterances.
    """

    def __init__(self, num_shown: int = 8) -> None:
        self._num_shown = num_shown

    def on_validation_batch_end(self, trainer: Any, output: StepOutput, batch: dict[str, Any], batch_idx: int) -> None:
        if batch_idx or not trainer.is_main_process or not trainer.exp_dir:
            return
        folder = Path(trainer.exp_dir) / "samples" / f"step_{trainer.global_step:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        rows = list(zip(batch["id"], batch["text"], output.outputs))[: self._num_shown]
        name = "transcripts" if trainer.dataloader_name is None else f"transcripts_{trainer.dataloader_name}"
        text = "".join(f"{one}\n  said  {said}\n  heard {heard}\n" for one, said, heard in rows)
        write_text(folder / f"{name}.txt", text)

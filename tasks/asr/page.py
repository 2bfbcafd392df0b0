"""The recogniser's page: a recording in, its text out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from components.data import AudioFiles, PadCollate
from utils.page import gradio, recording_page

if TYPE_CHECKING:
    from components.models.asr import AsrModel
    from tasks.asr.inference import AsrPredictor


def build_page(model: AsrModel, predictor: AsrPredictor) -> Any:
    """`gradio.Blocks` with the text, and a table of words with their times in seconds and confidences."""
    from accelerate.utils import send_to_device

    library = gradio()
    text = library.Textbox(label="Text", elem_id="text", render=False)
    headers = ["word", "begin", "end", "confidence"]
    table = library.Dataframe(headers=headers, label="Words", elem_id="words", render=False)

    @torch.inference_mode()
    def answer(path: str) -> tuple[str, list[list[Any]]]:
        items = AudioFiles(path, model.frontend.sample_rate)
        batch = send_to_device(PadCollate()([items[0]]), next(model.parameters()).device)
        record = predictor(model, batch)[0]
        return record["hypothesis"], [[_short(word[name]) for name in headers] for word in record["words"]]

    return recording_page("What is said in a recording", answer, [text, table])


def _short(value: Any) -> Any:
    return round(value, 2) if isinstance(value, float) else value

"""The tagger's page: a recording in, what is heard in it out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from components.data import AudioFiles, PadCollate
from utils.page import gradio, recording_page

if TYPE_CHECKING:
    from tasks.tagging.inference import TaggingPredictor


def build_page(model: nn.Module, predictor: TaggingPredictor) -> Any:
    """`gradio.Blocks` with a list of likely classes for every target."""
    from accelerate.utils import send_to_device

    library = gradio()
    targets = list(predictor.labels)
    shown = [library.Label(label=target, elem_id=f"heard-{target}", render=False) for target in targets]

    @torch.inference_mode()
    def answer(path: str) -> list[dict[str, float]]:
        items = AudioFiles(path, model.frontend.sample_rate)
        batch = send_to_device(PadCollate()([items[0]]), next(model.parameters()).device)
        found = predictor(model, batch)[0]["predictions"]
        heard = [{choice["label"]: choice["score"] for choice in found[target]["top"]} for target in targets]
        return heard if len(heard) > 1 else heard[0]

    return recording_page("What is heard in a recording", answer, shown)

"""The generator's page: type a wish, press, hear it and see it.  Shapes: T samples."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from components.data import PadCollate
from components.data.generation import Wishes
from utils.page import gradio, shown_to_people
from utils.plot import save_spectrograms

if TYPE_CHECKING:
    from components.models.audio_generator import AudioGenerator
    from tasks.audio_generation.inference import AudioGenerationPredictor


class WishingWell:
    """Sounds for wishes from a page, one at a time.

    Args:
        model: on its device.
        predictor: says how sounds are made, but for what the page sets.
        seconds: how long they are.
    """

    def __init__(self, model: AudioGenerator, predictor: AudioGenerationPredictor, seconds: float) -> None:
        self.model, self.predictor, self.seconds = model, predictor, seconds
        self._folder = Path(tempfile.mkdtemp(prefix="ostinato-page-"))

    @torch.inference_mode()
    def make(
        self, wish: str, num_steps: int, guidance_scale: float, seed: int, recording: str | None = None
    ) -> tuple[np.ndarray, float]:
        """A sound `[T]`, and the seconds that it took.

        Raises:
            UserError: the wish is empty.
            BadSample: the recording can not be read, or is too long.
        """
        from accelerate.utils import send_to_device

        from tasks.audio_generation.inference import item_seed

        rate = self.model.autoencoder.sample_rate
        items = Wishes(wish, rate, self.seconds, recording)
        device = next(self.model.parameters()).device
        batch = send_to_device(PadCollate()([items[0]]), device)
        predictor = copy.copy(self.predictor)
        predictor.num_steps, predictor.guidance_scale = int(num_steps), float(guidance_scale)
        start = time.perf_counter()
        sound, lens = predictor.make(self.model, batch, torch.tensor([item_seed(int(seed), wish, 0)]))
        return sound[0, 0, : int(lens[0])].float().cpu().numpy(), time.perf_counter() - start

    def answer(
        self, wish: str, num_steps: int, guidance_scale: float, seed: int, recording: str | None = None
    ) -> tuple[Any, str, str]:
        """What the page shows: the sound, the picture's file, and a line about both."""
        sound, took = self.make(wish, num_steps, guidance_scale, seed, recording)
        rate = self.model.autoencoder.sample_rate
        picture = self._folder / "spectrogram.png"
        save_spectrograms([(sound, rate, wish)], picture)
        told = f"{len(sound) / rate:.2f} s of sound in {took:.2f} s, peak {np.abs(sound).max():.2f}, seed {int(seed)}"
        return (rate, (np.clip(sound, -1, 1) * 32767).astype(np.int16)), str(picture), told


def build_page(well: WishingWell, examples: Sequence[str] = ()) -> Any:
    """`gradio.Blocks` around a well; `examples` are wishes to begin with."""
    g = gradio()
    p = well.predictor
    scale = p.guidance_scale if isinstance(p.guidance_scale, (int, float)) else 1.0
    with g.Blocks(title="Audio generation", analytics_enabled=False) as page:
        g.Markdown("## Make a sound")
        wish = g.Textbox(label="What do you want to hear?", value=examples[0] if examples else "", elem_id="wish")
        about = []
        if "source_waveform" in well.model.content_encoder:
            about.append(g.Audio(label="What it is about, if it is", type="filepath", elem_id="recording"))
        with g.Row():
            steps = g.Slider(1, 100, value=p.num_steps, step=1, label="Steps", elem_id="steps")
            guidance = g.Slider(0.0, 10.0, value=float(scale), step=0.1, label="Guidance", elem_id="guidance")
            seed = g.Number(value=p.seed, precision=0, label="Seed", elem_id="seed")
        press = g.Button("Make it", variant="primary", elem_id="make")
        sound = g.Audio(label="Sound", elem_id="sound", interactive=False)
        picture = g.Image(label="Spectrogram", elem_id="spectrogram", interactive=False)
        told = g.Markdown(elem_id="told")
        if examples:
            g.Examples([[example] for example in examples], [wish])
        asked, shown = [wish, steps, guidance, seed, *about], [sound, picture, told]
        answer = shown_to_people(well.answer)
        press.click(answer, asked, shown, api_name="make")
        wish.submit(answer, asked, shown, api_name=False)
    return page

"""Before training: what the autoencoder alone makes of clips, and what a loss is measured against.

Shapes: B batch, T samples, L latent frames, D latent.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from components.layers import length_mask
from components.metrics.base import Unscorable
from components.metrics.clips import Clip
from components.metrics.spectra import LogSpectralDistance
from components.models.audio_generator.generator import AudioGenerator
from tasks.audio_generation.inference import write_sound
from trainer import Callback
from trainer.data import plan_loader
from trainer.random_state import isolated_rng
from utils.io import file_name, write_json
from utils.plot import save_spectrograms

logger = logging.getLogger(__name__)

Batch = dict[str, Any]


class ReconstructionDemo(Callback):
    """Sends some validation clips through the autoencoder and back, once, before the first update.

    No generator sounds better than its autoencoder, so this is what to hear before hours of training. Clips go as
    `<id>_original.wav` and `<id>_reconstruction.wav`, with a sheet of spectrograms and `scores.json`, to
    `exp_dir/samples/reconstruction` and to the trackers. The log tells the log-spectral distance of the frames that
    hold sound, and the loss of a network that predicts zeros, which is that of an untrained one: E|velocity|^2 of a
    flow. On the main process alone; nothing else that is random in the run changes. A resumed run has had it.

    Args:
        num_clips: so many, spread over the first validation batch (of training, where there is no validation); 0: off.
    """

    def __init__(self, num_clips: int = 3) -> None:
        self._num_clips = num_clips

    def on_train_start(self, trainer: Any) -> None:
        writes = trainer.is_main_process and trainer.exp_dir is not None and not trainer.fast_dev_run
        if not self._num_clips or not writes or trainer.is_sharded or trainer.global_step > 0:
            return
        with torch.no_grad(), isolated_rng(trainer.seed, 2):
            batch = _first_batch(trainer)
            if batch is not None:
                self._show(trainer, trainer.unwrapped_model, batch)

    def _show(self, trainer: Any, model: AudioGenerator, batch: Batch) -> None:
        folder = Path(trainer.exp_dir) / "samples" / "reconstruction"
        folder.mkdir(parents=True, exist_ok=True)
        latents, latent_lens = model.latents_of(batch)
        baseline = baseline_loss(model, batch, latents, latent_lens, getattr(trainer, "validation_times", (0.5,)))
        rows = np.unique(np.linspace(0, len(latents) - 1, min(self._num_clips, len(latents))).astype(int)).tolist()
        model.autoencoder.eval()
        made, _ = model.autoencoder.decode(latents[rows], latent_lens[rows])
        pairs = [_pair(batch, i, sound[0], model.autoencoder.sample_rate) for i, sound in zip(rows, made)]
        files = _write(pairs, folder)
        scores = {"loss_of_zeros": baseline, "num_clips": len(pairs)}
        told = f"predicting zeros has a loss of {baseline:.3f}"
        if distances := _distances(pairs):
            scores |= {"log_spectral_distance_db": float(np.mean(distances))}
            told = f"the autoencoder's log-spectral distance is {np.mean(distances):.1f} dB, {told}"
        write_json(folder / "scores.json", scores)
        trainer.log_files(files)
        logger.info("%s; hear %s", told, folder)


def baseline_loss(
    model: AudioGenerator, batch: Batch, latents: Tensor, latent_lens: Tensor, times: Sequence[float] = (0.5,)
) -> float:
    """The objective's loss of zeros for `latents [B, L, D]`, the mean over items and `times` in [0, 1]."""
    num_frames = latents.shape[1]
    mask = None if model.is_full else ~length_mask(latent_lens, num_frames)
    source = None if model.source is None else model.source_latents(batch, num_frames)

    def loss_at(t: float) -> Tensor:
        every = latents.new_full((len(latents),), t)
        return model.objective.loss(lambda x, _: torch.zeros_like(x), latents, mask, source, every).per_item

    return float(torch.stack([loss_at(t) for t in times]).mean())


def _first_batch(trainer: Any) -> Batch | None:
    loaders = trainer.val_dataloader or trainer.train_dataloader
    loader = next(iter(loaders.values())) if isinstance(loaders, Mapping) else loaders
    planned = plan_loader(loader, seed=trainer.seed, skip_bad=trainer.bad_samples.skips)
    planned.start(0)
    return next((trainer.to_device(loaded.batch) for loaded in islice(planned, 1)), None)


def _pair(batch: Batch, i: int, made: Tensor, rate: int) -> tuple[Clip | None, Clip]:
    """A clip and its reconstruction `[T]`; of latents that were stored there is no clip."""
    name, sound = str(batch["id"][i]), made.float().cpu().numpy()
    if "waveform" not in batch:
        return None, Clip(name, sound, rate)
    original = batch["waveform"][i, 0, : int(batch["audio_lens"][i])].float().cpu().numpy()
    return Clip(name, original, rate), Clip(name, sound[: len(original)], rate)


def _write(pairs: Sequence[tuple[Clip | None, Clip]], folder: Path) -> dict[str, Path]:
    files, panels = {}, []
    for clips in pairs:
        for kind, clip in zip(("original", "reconstruction"), clips):
            if clip is not None:
                path = folder / f"{file_name(clip.id)}_{kind}.wav"
                write_sound(path, clip.samples, clip.sample_rate)
                files[f"reconstruction/{path.stem}"] = path
                panels.append((clip.samples, clip.sample_rate, f"{clip.id}, {kind}"))
    save_spectrograms(panels, folder / "spectrograms.png")
    return files | {"reconstruction/spectrograms": folder / "spectrograms.png"}


def _distances(pairs: Sequence[tuple[Clip | None, Clip]]) -> list[float]:
    """dB for every clip that has an original with sound in it."""
    distance, found = LogSpectralDistance(frames="speech"), []
    for original, made in pairs:
        with suppress(Unscorable):
            found += [] if original is None else [distance.score(made, original)]
    return found

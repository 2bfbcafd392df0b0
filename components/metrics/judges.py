"""Taggers that were trained with this program, as judges and embedders.  Shapes: B batch, T samples, D, K."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from components.data.audio import resample
from components.data.collate import PadCollate
from components.metrics.embedders import load_safetensors, pick_logits
from utils.errors import UserError
from utils.names import did_you_mean
from utils.stored_run import StoredRun, load_run


@dataclass(eq=False)
class Listener:
    """A tagging network that hears clips as it learned to.

    Args:
        model: `model(waveform [B, 1, T], audio_lens [B])` gives `logits {target: [B, K]}` and `embedding [B, D]`.
        sample_rate: Hz it hears at; others are resampled.
        labels: target -> class names, in the order of the logits.
        hearing: steps `(waveform [1, T], sample_rate) -> waveform` that every clip goes through first.
        device: where its network runs.
        batch_size: clips at a time.
    """

    model: nn.Module
    sample_rate: int
    labels: Mapping[str, Sequence[str]]
    hearing: Mapping[str, Any]
    device: str = "cpu"
    batch_size: int = 64

    @classmethod
    def of_run(cls, run: StoredRun, **options: Any) -> Listener:
        """That of a tagging run, without its weights: its config's `model`, `sample_rate`, `labels` and `hearing`.

        Raises:
            UserError: it is no tagging run, or its config names what a stored config may not build.
        """
        config = run.config
        for key in ("labels", "sample_rate"):
            if config.get(key) is None:
                raise UserError(f"exp_dir: {run.exp_dir} is no tagging run, its config has no {key}")
        labels = {str(target): [str(name) for name in names] for target, names in config.labels.items()}
        hearing = run.build("hearing") if config.get("hearing") is not None else {}
        return cls(run.build("model").requires_grad_(False), int(config.sample_rate), labels, hearing, **options)

    def hear(self, waveform: Tensor, audio_lens: Tensor, sample_rate: int) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Logits {target: `[B, K]`}, embeddings `[B, D]`, and which clips hold a sound `[B]`; on the CPU.

        A clip's are its own: they depend neither on its neighbours nor on how long the batch is. Of one that is silent,
        or holds what is no number, they mean nothing.
        """
        clips, sounds = [], []
        for clip, length in zip(waveform.detach().cpu().float(), audio_lens.tolist()):
            clip = clip[:, :length]
            sounds.append(bool(clip.isfinite().all()) and bool(clip.any()))
            clips.append(self._heard(clip, sample_rate) if sounds[-1] else torch.zeros(1, self.sample_rate))
        parts = [self._ask(clips[first : first + self.batch_size]) for first in range(0, len(clips), self.batch_size)]
        logits = {target: torch.cat([part[0][target] for part in parts]) for target in parts[0][0]}
        return logits, torch.cat([part[1] for part in parts]), torch.tensor(sounds)

    def _heard(self, clip: Tensor, sample_rate: int) -> Tensor:
        if sample_rate != self.sample_rate:
            clip = torch.from_numpy(resample(clip[0].numpy(), sample_rate, self.sample_rate)).unsqueeze(0)
        for step in self.hearing.values():
            clip = step(clip, self.sample_rate)
        return clip

    @torch.inference_mode()
    def _ask(self, clips: Sequence[Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        batch = PadCollate()([{"waveform": clip} for clip in clips])
        self.model.to(self.device).eval()
        output = self.model(batch["waveform"].to(self.device), batch["audio_lens"].to(self.device))
        logits = {target: values.float().cpu() for target, values in output.logits.items()}
        return logits, output.embedding.float().cpu()


@lru_cache(maxsize=4)
def _load(exp_dir: str, checkpoint: str | None) -> Listener:
    run = load_run(exp_dir)
    listener = Listener.of_run(run)
    folder = run.checkpoint_dir / (checkpoint or run.default_checkpoint())
    averaged = folder / "ema.safetensors"
    load_safetensors(listener.model, averaged if averaged.is_file() else folder / "model.safetensors")
    return listener


@dataclass(frozen=True)
class StoredTagger:
    """A tagger from its run's folder: `embed`, `logits` of one target, and the names of its `classes`.

    It hears clips as it learned to, by its config's `hearing`. That config is read as data, and builds only what a
    stored config may build.

    Args:
        exp_dir: the run's folder.
        target: whose logits; may be left out where there is one, or for `embed` alone.
        checkpoint: "best", "last" or a step's folder; the best where there is one.
    """

    exp_dir: str
    target: str | None = None
    checkpoint: str | None = None

    @property
    def classes(self) -> list[str]:
        """Names in the order of the logits.

        Raises:
            UserError: no such run, or no such target.
        """
        labels = self._listener().labels
        if self.target is None and len(labels) == 1:
            return list(next(iter(labels.values())))
        if self.target not in labels:
            hint = did_you_mean(self.target or "", labels)
            raise UserError(f"target: {self.exp_dir} tells {', '.join(labels)}, not {self.target!r}{hint}")
        return list(labels[self.target])

    def embed(self, waveform: Tensor, audio_lens: Tensor, sample_rate: int) -> Tensor:
        """What the classifiers see: `[B, 1, T]`, `[B]`, Hz to `[B, D]`."""
        return self._listener().hear(waveform, audio_lens, sample_rate)[1]

    def logits(self, waveform: Tensor, audio_lens: Tensor, sample_rate: int) -> Tensor:
        """`[B, 1, T]`, `[B]`, Hz to `[B, K]`; no numbers for a clip without a sound, which is of no class."""
        logits, _, sounds = self._listener().hear(waveform, audio_lens, sample_rate)
        picked = pick_logits(logits, self.target, self.exp_dir)
        return picked.masked_fill(~sounds.unsqueeze(1), float("nan"))

    def _listener(self) -> Listener:
        return _load(str(Path(self.exp_dir).expanduser()), self.checkpoint)

"""Taggers that were trained with this program, as judges and embedders.  Shapes: B batch, T samples, D, K."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from components.metrics.embedders import ModuleEmbedder, load_safetensors
from utils.errors import UserError
from utils.names import did_you_mean


@lru_cache(maxsize=4)
def _load(exp_dir: str, checkpoint: str | None) -> tuple[nn.Module, int, dict[str, list[str]]]:
    """The model of a run with its weights, its sample rate in Hz, and the classes of each target."""
    from utils.stored_run import load_run

    run = load_run(exp_dir)
    labels, sample_rate = run.config.get("labels"), run.config.get("sample_rate")
    if not labels or not isinstance(sample_rate, int):
        raise UserError(f"exp_dir: {run.exp_dir} is no tagging run, its config has no labels or no sample_rate")
    folder = run.checkpoint_dir / (checkpoint or run.default_checkpoint())
    averaged = folder / "ema.safetensors"
    model = run.build("model")
    load_safetensors(model, averaged if averaged.is_file() else folder / "model.safetensors")
    return model, sample_rate, {str(name): [str(one) for one in labels[name]] for name in labels}


@dataclass(frozen=True)
class StoredTagger:
    """A tagger from its run's folder: `embed`, `logits` of one target, and the names of its `classes`.

    Its config is read as data, and builds only what a stored config may build.

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
        labels = _load(str(Path(self.exp_dir).expanduser()), self.checkpoint)[2]
        if self.target is None and len(labels) == 1:
            return next(iter(labels.values()))
        if self.target not in labels:
            hint = did_you_mean(self.target or "", labels)
            raise UserError(f"target: {self.exp_dir} tells {', '.join(labels)}, not {self.target!r}{hint}")
        return labels[self.target]

    def embed(self, waveform: Tensor, audio_lens: Tensor, sample_rate: int) -> Tensor:
        """What the classifiers see: `[B, 1, T]`, `[B]`, Hz to `[B, D]`."""
        return self._module().embed(waveform, audio_lens, sample_rate)

    def logits(self, waveform: Tensor, audio_lens: Tensor, sample_rate: int) -> Tensor:
        """`[B, 1, T]`, `[B]`, Hz to `[B, K]`."""
        return self._module().logits(waveform, audio_lens, sample_rate)

    def _module(self) -> Any:
        model, sample_rate, _ = _load(str(Path(self.exp_dir).expanduser()), self.checkpoint)
        return ModuleEmbedder(model, sample_rate, self.target)

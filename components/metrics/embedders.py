"""From clips to vectors.  Shapes: B batch, T samples, L frames, F mels, D embedding, K classes, N clips."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from components.data.audio import resample
from components.features import LogMel
from components.layers import length_mask
from components.metrics.clips import Clip, pad_clips
from utils.errors import UserError

_BATCH = 16  # clips embedded at once
_LEVEL = 0.1  # root mean square that clips are brought to


@runtime_checkable
class Embedder(Protocol):
    """Anything that makes one vector of a clip.

    Padding must not be seen: a clip of a batch is embedded as if it stood alone. Two embedders that are equal and hash
    alike share the work on a clip. An embedder that knows classes has `logits` too, of the same arguments, to `[B, K]`,
    and may have `classes`, their names; one that knows texts has `embed_text(list of str) -> [B, D]`.
    """

    def embed(self, waveform: Tensor, audio_lens: Tensor, sample_rate: int) -> Tensor:
        """`[B, 1, T]`, `[B]`, Hz to `[B, D]`."""
        ...


def embed_clips(embedder: Any, clips: Sequence[Clip], output: str = "embed") -> np.ndarray:
    """`embed` (or `logits`) of clips, float64 `[N, D]`; each clip is looked at once by each embedder.

    Raises:
        UserError: the embedder has no such output.
    """
    call = getattr(embedder, output, None)
    if call is None:
        what = "class logits: take a classifier" if output == "logits" else f"method {output!r}"
        raise UserError(f"the embedder {type(embedder).__name__} has no {what}")
    key = (embedder, output)
    missing = [clip for clip in clips if key not in clip._memo]
    missing.sort(key=lambda clip: (clip.sample_rate, len(clip.samples)))
    for rate in dict.fromkeys(clip.sample_rate for clip in missing):
        alike = [clip for clip in missing if clip.sample_rate == rate]
        for start in range(0, len(alike), _BATCH):
            batch = alike[start : start + _BATCH]
            vectors = call(*pad_clips(batch), rate).double().cpu().numpy()
            for clip, vector in zip(batch, vectors):
                clip._memo[key] = vector
    return np.array([clip._memo[key] for clip in clips], dtype=np.float64)


def at_rate(waveform: Tensor, audio_lens: Tensor, from_rate: int, to_rate: int | None) -> tuple[Tensor, Tensor]:
    """A padded batch at another rate in Hz, each clip resampled alone; None for as it is."""
    if to_rate is None or from_rate == to_rate:
        return waveform, audio_lens
    clips = [
        Clip("", resample(samples[0, :length].cpu().numpy(), from_rate, to_rate), to_rate)
        for samples, length in zip(waveform, audio_lens.tolist())
    ]
    return pad_clips(clips)


# ----------------------------------------------------------------------------------------------------- without weights


@lru_cache(maxsize=8)
def _log_mel(sample_rate: int, n_mels: int, subtract_mean: bool) -> LogMel:
    n_fft = 2 ** math.ceil(math.log2(0.032 * sample_rate))
    return LogMel(sample_rate, n_fft, round(0.01 * sample_rate), n_mels, subtract_mean=subtract_mean)


@dataclass(frozen=True)
class LogMelStatsEmbedder:
    """Mean and standard deviation over time of each log-mel: an embedding that needs no weights, D = 2 F.

    Colour, level and how much both vary; no order of time, nothing about words.

    Args:
        sample_rate: Hz that clips are taken to.
        n_mels: F.
        subtract_level: take off each clip's mean, so that its loudness does not matter.
    """

    sample_rate: int = 16_000
    n_mels: int = 64
    subtract_level: bool = False

    @torch.inference_mode()
    def embed(self, waveform: Tensor, audio_lens: Tensor, sample_rate: int) -> Tensor:
        """`[B, 1, T]`, `[B]`, Hz to `[B, 2 F]`, float64."""
        waveform, audio_lens = at_rate(waveform, audio_lens, sample_rate, self.sample_rate)
        features, lens = _log_mel(self.sample_rate, self.n_mels, self.subtract_level)(waveform, audio_lens)
        mask = length_mask(lens, features.shape[1]).unsqueeze(2).double()
        count = mask.sum(1)
        mean = (features * mask).sum(1) / count
        variance = ((features - mean.unsqueeze(1)).square() * mask).sum(1) / count
        return torch.cat([mean, variance.sqrt()], dim=1)


@dataclass(frozen=True)
class MelCanvasEmbedder:
    """The log-mels themselves on a canvas of fixed length, for comparing clip with clip; D = L F.

    Each clip is brought to one loudness, cut or continued by silence, and divided by sqrt(L F): the distance of two
    clips is the root mean square difference of their log-mels. What is shifted in time is another clip to it.

    Args:
        sample_rate: Hz that clips are taken to.
        seconds: of the canvas.
        n_mels: F.
    """

    sample_rate: int = 16_000
    seconds: float = 1.0
    n_mels: int = 40

    @torch.inference_mode()
    def embed(self, waveform: Tensor, audio_lens: Tensor, sample_rate: int) -> Tensor:
        """`[B, 1, T]`, `[B]`, Hz to `[B, L F]`, float64."""
        waveform, audio_lens = at_rate(waveform, audio_lens, sample_rate, self.sample_rate)
        waveform = waveform * length_mask(audio_lens, waveform.shape[2]).unsqueeze(1)
        level = (waveform.double().square().sum((1, 2)) / audio_lens).sqrt().clamp(min=1e-5).view(-1, 1, 1)
        mel = _log_mel(self.sample_rate, self.n_mels, False)
        features, lens = mel(waveform * (_LEVEL / level), audio_lens)
        num_frames = 1 + round(self.seconds * self.sample_rate) // mel.hop_length
        canvas = torch.full((len(features), num_frames, self.n_mels), math.log(mel.floor), dtype=torch.float64)
        shared = min(num_frames, features.shape[1])
        inside = length_mask(lens, shared).unsqueeze(2)
        canvas[:, :shared] = torch.where(inside, features[:, :shared].double(), canvas[:, :shared])
        return canvas.flatten(1) / math.sqrt(num_frames * self.n_mels)


# ---------------------------------------------------------------------------------------------------------- of modules


@dataclass(eq=False)
class ModuleEmbedder:
    """A network of ours: `module(waveform [B, 1, T], audio_lens [B])` gives a tensor `[B, D]`, or an object with
    `embedding [B, D]` and `logits` (`[B, K]`, or {target: `[B, K]`}), as `components.models.tagger.Tagger` does.

    Args:
        module: padding must not be seen by it.
        sample_rate: Hz that it was trained for.
        target: which of its logits to take, where it has several.
        classes: their names, in the order of the logits.
        weights: a safetensors file to load into it.

    Raises:
        UserError: the weights are missing or do not fit.
    """

    module: nn.Module
    sample_rate: int
    target: str | None = None
    classes: Sequence[str] | None = None
    weights: str | Path | None = None

    def __post_init__(self) -> None:
        if self.weights is not None:
            load_safetensors(self.module, Path(self.weights))

    def embed(self, waveform: Tensor, audio_lens: Tensor, sample_rate: int) -> Tensor:
        """`[B, 1, T]`, `[B]`, Hz to `[B, D]`."""
        output = self._run(waveform, audio_lens, sample_rate)
        return output if isinstance(output, Tensor) else output.embedding

    def logits(self, waveform: Tensor, audio_lens: Tensor, sample_rate: int) -> Tensor:
        """`[B, 1, T]`, `[B]`, Hz to `[B, K]`.

        Raises:
            UserError: the module has no logits, or not of the target.
        """
        output = getattr(self._run(waveform, audio_lens, sample_rate), "logits", None)
        return pick_logits(output, self.target, type(self.module).__name__)

    @torch.inference_mode()
    def _run(self, waveform: Tensor, audio_lens: Tensor, sample_rate: int) -> Any:
        waveform, audio_lens = at_rate(waveform, audio_lens, sample_rate, self.sample_rate)
        device = next((tensor.device for tensor in self.module.parameters()), waveform.device)
        was_training = self.module.training
        self.module.eval()
        try:
            return self.module(waveform.to(device), audio_lens.to(device))
        finally:
            self.module.train(was_training)


def pick_logits(logits: Any, target: str | None, whose: str) -> Tensor:
    """The logits `[B, K]` of a target, or the only ones.

    Raises:
        UserError: there are none, or it is not clear which.
    """
    if isinstance(logits, Tensor):
        return logits
    if not isinstance(logits, Mapping) or not logits:
        raise UserError(f"{whose} gives no class logits: take a classifier")
    if target is None and len(logits) == 1:
        return next(iter(logits.values()))
    if target not in logits:
        raise UserError(f"target: expected one of {', '.join(logits)}, of which {whose} has logits, got {target!r}")
    return logits[target]


def load_safetensors(module: nn.Module, path: Path) -> None:
    """Load weights, strictly.

    Raises:
        UserError: the file is missing, damaged, or does not fit the module.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise UserError(f"weights: there is no file {path}")
    try:
        module.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError) as error:
        raise UserError(
            f"weights: {path} does not fit {type(module).__name__}: {' '.join(str(error).split())}"
        ) from None


@lru_cache(maxsize=4)
def _torch_script(path: Path, device: str, changed: int) -> Any:
    try:
        return torch.jit.load(str(path), map_location=device).eval()
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"path: {path} is no TorchScript module: {reason}") from None


@dataclass(frozen=True)
class TorchScriptEmbedder:
    """Somebody else's network (VGGish, PANNs, ...) from a TorchScript file; clips go in one by one.

    The module takes samples `[1, T]` and gives an embedding `[1, D]`, frames of embeddings `[L, D]` (their mean is
    taken), or a dict with `embedding` and `logits`. None is shipped or downloaded.

    Args:
        path: of the file.
        sample_rate: Hz that the network was trained for.
        min_seconds: what it can not do with less than.
        device: where it runs.
    """

    path: str
    sample_rate: int
    min_seconds: float = 0.0
    device: str = "cpu"

    def embed(self, waveform: Tensor, audio_lens: Tensor, sample_rate: int) -> Tensor:
        """`[B, 1, T]`, `[B]`, Hz to `[B, D]`.

        Raises:
            UserError: there is no such file, or it is no TorchScript.
        """
        return self._each("embedding", waveform, audio_lens, sample_rate)

    def logits(self, waveform: Tensor, audio_lens: Tensor, sample_rate: int) -> Tensor:
        """`[B, 1, T]`, `[B]`, Hz to `[B, K]`. Raises as `embed`, and where the network gives no logits."""
        return self._each("logits", waveform, audio_lens, sample_rate)

    @torch.inference_mode()
    def _each(self, name: str, waveform: Tensor, audio_lens: Tensor, sample_rate: int) -> Tensor:
        path = Path(self.path).expanduser()
        if not path.is_file():
            raise UserError(
                f"path: there is no file {path}. The weights of such networks are not shipped: save the network once "
                "with torch.jit.trace(network, samples).save(FILE), or take components.metrics.LogMelStatsEmbedder, "
                "which needs none"
            )
        network = _torch_script(path, self.device, path.stat().st_mtime_ns)
        waveform, audio_lens = at_rate(waveform, audio_lens, sample_rate, self.sample_rate)
        vectors = []
        for samples, length in zip(waveform, audio_lens.tolist()):
            output = network(samples[:, :length].to(self.device))
            if isinstance(output, Mapping):
                output = output.get(name)
            elif name == "logits":
                output = None
            if output is None:
                raise UserError(f"path: the network in {path} gives no {name!r}")
            vectors.append(output.float().reshape(-1, output.shape[-1]).mean(0))
        return torch.stack(vectors)

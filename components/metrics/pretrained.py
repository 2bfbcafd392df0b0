"""Embedders from pretrained networks of transformers, from a local folder or the cache of the hub.

Nothing is downloaded unless `download` says so.  Shapes: B batch, T samples, D embedding, K classes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from components.metrics.embedders import at_rate
from utils.errors import UserError
from utils.imports import require


def _load(loader: str, name: str, download: bool, kind: str) -> Any:
    """`transformers.<loader>.from_pretrained(name)`, never with code from elsewhere."""
    transformers = require("transformers", extra="generation")
    try:
        return getattr(transformers, loader).from_pretrained(os.path.expanduser(name), local_files_only=not download)
    except (OSError, ValueError, KeyError) as error:
        more = "" if download else ", and nothing is downloaded (download: true fetches it once)"
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"name: no {kind} of {name!r} at hand{more}: {reason}") from None


@lru_cache(maxsize=2)
def _model(loader: str, name: str, download: bool, device: str) -> Any:
    return _load(loader, name, download, "weights").eval().to(device)


@lru_cache(maxsize=8)
def _processor(loader: str, name: str, download: bool) -> Any:
    return _load(loader, name, download, "settings")


def _each(waveform: Tensor, audio_lens: Tensor, embed: Callable[[np.ndarray], Tensor]) -> Tensor:
    """Clip by clip: many of these networks see padding."""
    lens = audio_lens.tolist()
    return torch.stack([embed(samples[0, :length].cpu().numpy()) for samples, length in zip(waveform, lens)])


@dataclass(frozen=True)
class ClapEmbedder:
    """CLAP (Wu et al. 2023, arXiv:2211.06687), of sounds and of texts, by transformers' `ClapModel`.

    A clip longer than CLAP's window (10 s) is heard window by window, and the mean taken: transformers would cut out a
    random piece. Shorter ones are repeated, as CLAP was trained.

    Args:
        name: a folder, or a name on the hub such as `laion/clap-htsat-unfused`.
        download: fetch it from the hub where it is not at hand.
        device: where it runs.
    """

    name: str
    download: bool = False
    device: str = "cpu"

    @torch.inference_mode()
    def embed(self, waveform: Tensor, audio_lens: Tensor, sample_rate: int) -> Tensor:
        """`[B, 1, T]`, `[B]`, Hz to unit vectors `[B, D]`.

        Raises:
            UserError: transformers is not installed, or the weights are not at hand.
        """
        model = _model("ClapModel", self.name, self.download, self.device)
        extractor = _processor("ClapFeatureExtractor", self.name, self.download)
        waveform, audio_lens = at_rate(waveform, audio_lens, sample_rate, extractor.sampling_rate)

        def embed(samples: np.ndarray) -> Tensor:
            windows = np.split(samples, range(extractor.nb_max_samples, len(samples), extractor.nb_max_samples))
            inputs = extractor(windows, sampling_rate=extractor.sampling_rate, return_tensors="pt")
            features = inputs["input_features"].float().to(self.device)
            # The extractor calls a random one of short clips long; none is.
            is_longer = torch.zeros(len(windows), 1, dtype=torch.bool, device=self.device)
            vectors = model.get_audio_features(input_features=features, is_longer=is_longer)
            return _unit(_unit(_pooled(vectors)).mean(0))

        return _each(waveform, audio_lens, embed)

    @torch.inference_mode()
    def embed_text(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors `[B, D]`. Raises as `embed`."""
        model = _model("ClapModel", self.name, self.download, self.device)
        tokenizer = _processor("AutoTokenizer", self.name, self.download)
        tokens = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt").to(self.device)
        named = {key: tokens[key] for key in ("input_ids", "attention_mask")}
        return _unit(_pooled(model.get_text_features(**named)))


def _pooled(output: Any) -> Tensor:
    """transformers 5 wraps what version 4 gave as a tensor."""
    return output if isinstance(output, Tensor) else output.pooler_output


def _unit(vectors: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors.float(), dim=-1)


@dataclass(frozen=True)
class TransformersEmbedder:
    """Any audio encoder of transformers (wav2vec 2.0, HuBERT, WavLM, Whisper's encoder, AST, ...), the mean over time.

    Clips go in one by one, so that padding is seen by none.

    Args:
        name: a folder, or a name on the hub.
        layer: which hidden state; -1 is the last. Speakers are told apart by early layers, words by later ones.
        min_seconds: what the network can not do with less than (its convolutions see some 25 ms).
        download: fetch it from the hub where it is not at hand.
        device: where it runs.
    """

    name: str
    layer: int = -1
    min_seconds: float = 0.05
    download: bool = False
    device: str = "cpu"

    @torch.inference_mode()
    def embed(self, waveform: Tensor, audio_lens: Tensor, sample_rate: int) -> Tensor:
        """`[B, 1, T]`, `[B]`, Hz to `[B, D]`.

        Raises:
            UserError: transformers is not installed, or the weights are not at hand.
        """
        model = _model("AutoModel", self.name, self.download, self.device)
        encoder = model.get_encoder() if model.config.is_encoder_decoder else model
        extractor = _processor("AutoFeatureExtractor", self.name, self.download)
        waveform, audio_lens = at_rate(waveform, audio_lens, sample_rate, extractor.sampling_rate)

        def embed(samples: np.ndarray) -> Tensor:
            hidden = encoder(_inputs(extractor, samples, self.device), output_hidden_states=True).hidden_states
            return hidden[self.layer][0].float().mean(0)

        return _each(waveform, audio_lens, embed)


@dataclass(frozen=True)
class TransformersClassifier:
    """Any audio classifier of transformers (AST on AudioSet, ...): `logits`, and `classes` for a judge.

    Args:
        name: a folder, or a name on the hub such as `MIT/ast-finetuned-audioset-10-10-0.4593`.
        download: fetch it from the hub where it is not at hand.
        device: where it runs.
    """

    name: str
    download: bool = False
    device: str = "cpu"

    @property
    def classes(self) -> list[str]:
        """Names in the order of the logits."""
        names = _model("AutoModelForAudioClassification", self.name, self.download, self.device).config.id2label
        return [names[k] for k in sorted(names)]

    @torch.inference_mode()
    def logits(self, waveform: Tensor, audio_lens: Tensor, sample_rate: int) -> Tensor:
        """`[B, 1, T]`, `[B]`, Hz to `[B, K]`.

        Raises:
            UserError: transformers is not installed, or the weights are not at hand.
        """
        model = _model("AutoModelForAudioClassification", self.name, self.download, self.device)
        extractor = _processor("AutoFeatureExtractor", self.name, self.download)
        waveform, audio_lens = at_rate(waveform, audio_lens, sample_rate, extractor.sampling_rate)
        return _each(
            waveform, audio_lens, lambda samples: model(_inputs(extractor, samples, self.device)).logits[0].float()
        )

    @torch.inference_mode()
    def embed(self, waveform: Tensor, audio_lens: Tensor, sample_rate: int) -> Tensor:
        """The last hidden state's mean over time, `[B, 1, T]`, `[B]`, Hz to `[B, D]`. Raises as `logits`."""
        model = _model("AutoModelForAudioClassification", self.name, self.download, self.device)
        extractor = _processor("AutoFeatureExtractor", self.name, self.download)
        waveform, audio_lens = at_rate(waveform, audio_lens, sample_rate, extractor.sampling_rate)

        def embed(samples: np.ndarray) -> Tensor:
            output = model(_inputs(extractor, samples, self.device), output_hidden_states=True)
            return output.hidden_states[-1][0].float().mean(0)

        return _each(waveform, audio_lens, embed)


def _inputs(extractor: Any, samples: np.ndarray, device: str) -> Tensor:
    inputs = extractor(samples, sampling_rate=extractor.sampling_rate, return_tensors="pt")
    return inputs[extractor.model_input_names[0]].to(device)

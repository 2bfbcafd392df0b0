"""What the families of speech models in transformers take, and how they are kept from seeing padding.

Shapes: B batch, L input frames or samples, T output frames, F features, C channels, D model.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, gelu, pad

from components.features.waveform import NormalizeWaveform
from components.features.whisper import WhisperLogMel
from components.layers.frame_norm import FrameGroupNorm
from components.layers.masking import length_mask
from components.layers.visible_frames import attention_mask, padding_of
from utils.errors import UserError

KINDS = ("wav2vec2", "hubert", "wavlm", "unispeech", "unispeech-sat", "wav2vec2-bert", "whisper")


class Backbone(nn.Module, ABC):
    """One family: what goes into its model, which is not a part of this module, and what comes out.

    Attributes:
        subsampling: input frames, or samples, per output frame.
        can_mask: whether the model can replace frames by a vector.
    """

    subsampling: int
    can_mask = True

    @abstractmethod
    def output_lens(self, lens: Tensor) -> Tensor:
        """T of so many samples or frames."""

    @abstractmethod
    def encode(
        self, model: nn.Module, features: Tensor, lens: Tensor, padding: Tensor | None, masked: Tensor | None
    ) -> Tensor:
        """`[B, L, F]`, `[B]` to `[B, T, D]`, anything in the padding.

        Args:
            padding: bool `[B, T]`, True where there is nothing; None: there is something everywhere.
            masked: bool `[B, T]`, True at frames to be replaced.
        """

    @abstractmethod
    def front(self, model: nn.Module) -> Sequence[nn.Module]:
        """The parts in front of the transformer, children of the model."""

    def layers(self, model: nn.Module) -> Sequence[nn.Module]:
        """The transformer's."""
        return model.encoder.layers

    def last_norm(self, model: nn.Module) -> nn.Module | None:
        """What the last layer's output goes through, if anything."""
        return None


def backbone_of(model: nn.Module, input_dim: int, normalize: bool, whole_window: bool) -> Backbone:
    """The family of a model of transformers.

    Raises:
        UserError: it is none of these, or takes another `input_dim`.
    """
    kind = model.config.model_type
    if kind not in KINDS:
        # Others were tried: in wav2vec2-conformer and data2vec-audio convolutions read what is behind a clip.
        raise UserError(f"encoder: {kind} is none of the models that are kept from seeing padding: {', '.join(KINDS)}")
    for key in ("add_adapter", "conv_pos_batch_norm"):
        if getattr(model.config, key, False):
            raise UserError(f"encoder.config.{key}: what it adds sees the padding, set it to false")
    if kind == "whisper":
        return WhisperBackbone(model, input_dim, whole_window)
    if whole_window:
        raise UserError(f"whole_window: only whisper has one, {kind} has not")
    return FrameBackbone(model, input_dim) if kind == "wav2vec2-bert" else WaveformBackbone(model, input_dim, normalize)


class WaveformBackbone(Backbone):
    """Wav2Vec2, HuBERT, WavLM, UniSpeech: convolutions over the waveform, then a transformer."""

    def __init__(self, model: nn.Module, input_dim: int, normalize: bool) -> None:
        super().__init__()
        _demand(model, input_dim, 1)
        self.convs = list(zip(model.config.conv_kernel, model.config.conv_stride))
        self.subsampling = math.prod(stride for _, stride in self.convs)
        self.shortest = 1
        for kernel, stride in reversed(self.convs):
            self.shortest = (self.shortest - 1) * stride + kernel
        self.normalize = NormalizeWaveform() if normalize else None
        # WavLM gives torch a bool mask and a float one; who uses it can change nothing.
        warnings.filterwarnings("ignore", "Support for mismatched key_padding_mask")
        first = model.feature_extractor.conv_layers[0]
        if isinstance(first.layer_norm, nn.GroupNorm):
            first.layer_norm = _ConvGroupNorm(first.layer_norm)

    def output_lens(self, lens: Tensor) -> Tensor:
        lens = lens.clamp(min=self.shortest)
        for kernel, stride in self.convs:
            lens = (lens - kernel) // stride + 1
        return lens

    def encode(
        self, model: nn.Module, features: Tensor, lens: Tensor, padding: Tensor | None, masked: Tensor | None
    ) -> Tensor:
        samples = features.squeeze(-1)
        if self.normalize is not None:
            samples = self.normalize(samples.unsqueeze(1), lens).squeeze(1)
        elif padding_of(lens, samples.shape[1]) is not None:
            samples = samples.masked_fill(~length_mask(lens, samples.shape[1]), 0)
        samples = pad(samples, (0, max(0, self.shortest - samples.shape[1])))
        lens = lens.clamp(min=self.shortest)
        norm = model.feature_extractor.conv_layers[0].layer_norm
        if isinstance(norm, _ConvGroupNorm):
            kernel, stride = self.convs[0]
            norm.lens = (lens - kernel) // stride + 1
        mask = None if padding is None else length_mask(lens, samples.shape[1]).long()
        return model(samples, attention_mask=mask, **_masking(masked)).last_hidden_state

    def front(self, model: nn.Module) -> Sequence[nn.Module]:
        return [model.feature_extractor]

    def last_norm(self, model: nn.Module) -> nn.Module | None:
        return model.encoder.layer_norm if model.config.do_stable_layer_norm else None


class _ConvGroupNorm(FrameGroupNorm):
    """Takes the place, and the parameters, of a `GroupNorm` over `[B, C, L]`; is told the clips' frames beforehand."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__(norm.num_groups, norm.num_channels, norm.eps)
        self.weight, self.bias = norm.weight, norm.bias
        self.lens: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        padding = padding_of(self.lens, x.shape[2])
        return super().forward(x.mT, None if padding is None else padding.unsqueeze(-1)).mT


class FrameBackbone(Backbone):
    """Wav2Vec2-BERT: 160 features, two Kaldi frames of 80 side by side, through a projection and a Conformer."""

    def __init__(self, model: nn.Module, input_dim: int) -> None:
        super().__init__()
        _demand(model, input_dim, model.config.feature_projection_input_dim)
        self.subsampling = 1

    def output_lens(self, lens: Tensor) -> Tensor:
        return lens

    def encode(
        self, model: nn.Module, features: Tensor, lens: Tensor, padding: Tensor | None, masked: Tensor | None
    ) -> Tensor:
        mask = None
        if padding is not None:
            features, mask = features.masked_fill(padding.unsqueeze(-1), 0), (~padding).long()
        return model(features, attention_mask=mask, **_masking(masked)).last_hidden_state

    def front(self, model: nn.Module) -> Sequence[nn.Module]:
        return [model.feature_projection]


class WhisperBackbone(Backbone):
    """Whisper's encoder; of waveforms it makes its log-mel spectrogram by itself."""

    can_mask = False

    def __init__(self, model: nn.Module, input_dim: int, whole_window: bool) -> None:
        super().__init__()
        bands, self.longest = model.config.num_mel_bins, model.config.max_source_positions
        if input_dim not in (1, bands):
            raise UserError(f"encoder: whisper takes waveforms (1) or {bands} mel bands, not {input_dim} features")
        if whole_window and input_dim != 1:
            raise UserError("whole_window: what is behind a clip is silence only for waveforms, not for features")
        seconds = self.longest / 50 if whole_window else None  # a frame lasts 20 ms
        self.log_mel = WhisperLogMel(n_mels=bands, chunk_seconds=seconds) if input_dim == 1 else None
        self.subsampling, self.whole_window = 320 if input_dim == 1 else 2, whole_window

    def output_lens(self, lens: Tensor) -> Tensor:
        frames = lens if self.log_mel is None else (lens // 160).clamp(min=1)
        return (frames + 1) // 2

    def encode(
        self, model: nn.Module, features: Tensor, lens: Tensor, padding: Tensor | None, masked: Tensor | None
    ) -> Tensor:
        num_frames = int(self.output_lens(torch.tensor(features.shape[1])))
        if num_frames > self.longest:
            raise UserError(f"whisper hears {self.longest / 50:g} s at most, this batch has {num_frames / 50:g} s")
        if self.log_mel is not None:
            features, lens = self.log_mel(features.mT, lens)
        before = None if self.whole_window else padding_of(lens, features.shape[1])
        if before is not None:
            features = features.masked_fill(before.unsqueeze(-1), 0)
        x = gelu(model.conv1(features.mT))
        if before is not None:
            x = x.masked_fill(before.unsqueeze(1), 0)
        x = gelu(model.conv2(x)).mT
        x = dropout(x + model.embed_positions.weight[: x.shape[1]], model.dropout, model.training)
        mask = None if self.whole_window else _added(attention_mask(padding, None), x.dtype)
        for layer in model.layers:
            x = layer(x, mask)
        return model.layer_norm(x)[:, :num_frames]

    def front(self, model: nn.Module) -> Sequence[nn.Module]:
        return [model.conv1, model.conv2]

    def layers(self, model: nn.Module) -> Sequence[nn.Module]:
        return model.layers

    def last_norm(self, model: nn.Module) -> nn.Module | None:
        return model.layer_norm


def _added(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A mask that is added to scores, of a bool one."""
    if mask is None:
        return None
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, -torch.inf)


def _masking(masked: Tensor | None) -> dict[str, Tensor]:
    return {} if masked is None else {"mask_time_indices": masked}


def _demand(model: nn.Module, input_dim: int, needed: int) -> None:
    if input_dim != needed:
        what = (
            "waveforms (components.features.Samples as the frontend)" if needed == 1 else f"{needed} features a frame"
        )
        raise UserError(f"encoder: {model.config.model_type} takes {what}, not {input_dim} features a frame")

"""Speech encoders of the transformers library.  Shapes: B batch, L input frames or samples, T output frames, D, H."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from components.layers.visible_frames import padding_of
from components.models.asr.encoders.backbones import backbone_of
from components.models.asr.encoders.base import SpeechEncoder
from components.models.asr.encoders.transformers_model import load_speech_model
from components.models.asr.types import Encoded
from utils.errors import UserError


class PretrainedSpeechEncoder(SpeechEncoder):
    """Wav2Vec2, HuBERT, WavLM and their like, Wav2Vec2-BERT, or Whisper's encoder, from weights or from a config.

    Unlike in transformers each clip of a padded batch is as if it stood alone: attention is always masked, the group
    normalisation of the base models counts true frames only, and a clip shorter than the receptive field is padded with
    silence. LayerDrop and the library's own masking, which draws from numpy on the host and stops at short clips, are
    off; masking is ours.

    Args:
        input_dim: 1 for waveforms at 16 kHz, `[B, L, 1]`; Whisper takes its mel bands too, Wav2Vec2-BERT its 160
            features only.
        pretrained: a local folder or the name of a hub repository; None: random weights by `config`.
        config: keys of the transformers config: with `model_type` where nothing is pretrained, else what differs from
            the checkpoint's, such as `hidden_dropout` or `layerdrop`.
        freeze_feature_extractor: the convolutions in front do not learn.
        freeze_transformer: all behind them does not learn. What is frozen stays in eval mode.
        normalize: bring waveforms to zero mean and unit variance over their true length, as most models were trained
            (`do_normalize` in their preprocessor_config.json; not WavLM base). Not for Whisper.
        mask_time_prob: share of the frames behind the convolutions that training replaces by a learned vector, in spans
            that may overlap (Baevski et al. 2020, arXiv:2006.11477, 3.1).
        mask_time_length: frames of a span; a shorter clip is not masked.
        whole_window: give Whisper its 30 s, silence behind the clip, as it was trained; else only the clip.

    Raises:
        UserError: nothing can be read, the config has unknown keys, or the model is none of these.
    """

    def __init__(
        self,
        input_dim: int = 1,
        pretrained: str | None = None,
        config: Mapping[str, Any] | None = None,
        freeze_feature_extractor: bool = False,
        freeze_transformer: bool = False,
        normalize: bool = True,
        mask_time_prob: float = 0.0,
        mask_time_length: int = 10,
        whole_window: bool = False,
    ) -> None:
        super().__init__()
        self.mask_time_prob, self.mask_time_length = mask_time_prob, mask_time_length
        self.model = load_speech_model(pretrained, dict(config or {}), mask_time_prob)
        self.backbone = backbone_of(self.model, input_dim, normalize, whole_window)
        if mask_time_prob and not self.backbone.can_mask:
            raise UserError("mask_time_prob: this model has no vector to put in the place of frames, set it to 0")
        self.output_dim, self.subsampling = self.model.config.hidden_size, self.backbone.subsampling
        self.num_layers = len(self.backbone.layers(self.model))
        front = set(self.backbone.front(self.model))
        self._frozen = [
            name for name, part in self.model.named_children()
            if (freeze_feature_extractor if part in front else freeze_transformer)
        ]  # fmt: skip
        for name in self._frozen:
            getattr(self.model, name).requires_grad_(False)
        if freeze_feature_extractor and hasattr(self.model, "freeze_feature_encoder"):
            self.model.freeze_feature_encoder()  # else it asks for gradients of the waveform
        if freeze_transformer and hasattr(self.model, "masked_spec_embed"):
            self.model.masked_spec_embed.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> PretrainedSpeechEncoder:
        """What is frozen is never in training mode."""
        super().train(mode)
        for name in self._frozen:
            getattr(self.model, name).eval()
        return self

    def output_lens(self, feature_lens: Tensor) -> Tensor:
        """T of clips of so many samples or frames, at least 1."""
        return self.backbone.output_lens(feature_lens)

    def forward(self, features: Tensor, feature_lens: Tensor, layers: Collection[int] = ()) -> Encoded:
        """`features [B, L, input_dim]`, anything in the padding, `feature_lens [B]`, to `Encoded`.

        Args:
            layers: numbers of the layers whose outputs are wanted too, normalised as the last one's.

        Raises:
            UserError: there is no layer of a number, or a clip is longer than Whisper's window.
        """
        self._check(layers)
        lens = self.output_lens(feature_lens)
        num_frames = int(self.output_lens(torch.tensor(features.shape[1])))
        padding = padding_of(lens, num_frames)
        masked = self._draw_mask(lens, num_frames) if self.training and self.mask_time_prob else None
        with self._outputs_of(layers) as inner:
            hidden = self.backbone.encode(self.model, features, feature_lens, padding, masked)
        norm = self.backbone.last_norm(self.model)
        inner = {number: (x if norm is None else norm(x))[:, :num_frames] for number, x in inner.items()}
        return Encoded(_cut(hidden, padding), lens, {number: _cut(x, padding) for number, x in inner.items()})

    @contextmanager
    def record_attention(self) -> Iterator[dict[int, Tensor]]:
        """See `record_attention` of this package; WavLM gives the mean over its heads in the place of each."""
        usual = self.model.config._attn_implementation
        maps: dict[int, Tensor] = {}
        with ExitStack() as stack:
            for number, layer in enumerate(self.backbone.layers(self.model), 1):
                attention = layer.attention if hasattr(layer, "attention") else layer.self_attn
                hook = attention.register_forward_hook(_keep_weights(maps, number))
                stack.callback(hook.remove)
            self.model.set_attn_implementation("eager")  # the only one that has weights
            stack.callback(self.model.set_attn_implementation, usual)
            yield maps

    def gradient_checkpointing_enable(self) -> None:
        # Its name from transformers 6 on, where this version has it.
        getattr(self.model, "activation_checkpointing_enable", self.model.gradient_checkpointing_enable)()

    @contextmanager
    def _outputs_of(self, layers: Collection[int]) -> Iterator[dict[int, Tensor]]:
        outputs: dict[int, Tensor] = {}
        modules = self.backbone.layers(self.model)
        with ExitStack() as stack:
            for number in layers:
                stack.callback(modules[number - 1].register_forward_hook(_keep_hidden(outputs, number)).remove)
            yield outputs

    def _draw_mask(self, lens: Tensor, num_frames: int) -> Tensor:
        """bool `[B, T]`, True at frames to be masked; without waiting for a device."""
        places = torch.arange(num_frames, device=lens.device)
        may_start = places <= (lens - self.mask_time_length).unsqueeze(1)
        chance = self.mask_time_prob / self.mask_time_length
        starts = (torch.rand(may_start.shape, device=lens.device) < chance) & may_start
        begun = starts.long().cumsum(1)
        over = nn.functional.pad(begun, (self.mask_time_length, 0))[:, :num_frames]
        return begun > over


def _cut(x: Tensor, padding: Tensor | None) -> Tensor:
    return x if padding is None else x.masked_fill(padding.unsqueeze(-1), 0)


def _keep_weights(maps: dict[int, Tensor], number: int):
    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        maps[number] = output[1].detach()

    return keep


def _keep_hidden(outputs: dict[int, Tensor], number: int):
    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        outputs[number] = output if isinstance(output, Tensor) else output[0]

    return keep

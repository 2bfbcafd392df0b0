"""The waveform autoencoder of Stable Audio (Evans et al. 2024, arXiv:2402.04825), as diffusers has it.

Shapes: B batch, C channels, T samples, L frames, D latent.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations

from components.layers import length_mask
from components.losses import gaussian_kl
from components.models.audio_generator.autoencoders.base import Autoencoder, whole_frames
from utils.errors import UserError
from utils.imports import require

_CONVOLUTIONS = (nn.Conv1d, nn.ConvTranspose1d)


@dataclass(slots=True)
class AutoencoderOutput:
    """What comes back of a waveform.

    Attributes:
        waveform: `[B, 1, T]`, of the length that went in, zero behind each clip.
        latents: `[B, L, D]`, sampled, at their own scale.
        latent_lens: `[B]`.
        kl: `[B]`, nats of the posterior against a standard normal, per frame.
    """

    waveform: Tensor
    latents: Tensor
    latent_lens: Tensor
    kl: Tensor


torch.export.register_dataclass(AutoencoderOutput)


class OobleckAutoencoder(Autoencoder):
    """diffusers' `AutoencoderOobleck`, that sees no padding and gives every sample back.

    Convolutions of a padded batch are kept from the padding at every layer. With odd strides diffusers' decoder loses
    samples at the end of every layer; here they are kept. A model of several channels hears a mono clip on all of them
    and gives their mean.

    Args:
        sample_rate: Hz.
        hidden_size: channels that the encoder's last layer gives, mean and scale of the posterior: twice D.
        strides: of each block of the encoder, the decoder's in reverse; their product is `hop_length`.
        channel_multiples: of `hidden_size`, for each block of the encoder; of `decoder_channels`, in reverse, for the
            decoder.
        decoder_channels: of the decoder's last layer.
        audio_channels: C inside of the model.
        pretrained: a local folder or the name of a hub repository that holds an `AutoencoderOobleck`; all of the above
            are then its own, and `sample_rate` must agree.
        subfolder: where in `pretrained` it lies, `vae` in those of Stable Audio.
        normalise_weights: by `weight_norm`; False for weights that were saved after `remove_weight_norm`.
        statistics: see `Autoencoder`.

    Raises:
        UserError: the settings do not fit together, or `pretrained` can not be read.
    """

    def __init__(
        self,
        sample_rate: int,
        hidden_size: int = 128,
        strides: Sequence[int] = (2, 4, 4, 8, 8),
        channel_multiples: Sequence[int] = (1, 2, 4, 8, 16),
        decoder_channels: int = 128,
        audio_channels: int = 1,
        pretrained: str | None = None,
        subfolder: str | None = None,
        normalise_weights: bool = True,
        statistics: str | Path | None = None,
    ) -> None:
        if pretrained is None:
            if hidden_size % 2 or len(strides) != len(channel_multiples):
                raise UserError(
                    f"hidden_size must be even, got {hidden_size}, and strides and channel_multiples of one length, "
                    f"got {len(strides)} and {len(channel_multiples)}"
                )
            model = _quietly(
                require("diffusers", extra="generation").AutoencoderOobleck,
                encoder_hidden_size=hidden_size,
                downsampling_ratios=list(strides),
                channel_multiples=list(channel_multiples),
                decoder_channels=decoder_channels,
                decoder_input_channels=hidden_size // 2,
                audio_channels=audio_channels,
                sampling_rate=sample_rate,
            )
        else:
            model = _load(pretrained, subfolder, sample_rate)
        super().__init__(sample_rate, model.hop_length, model.config.decoder_input_channels, statistics)
        self.audio_channels = model.config.audio_channels
        self._config = {name: value for name, value in model.config.items() if not name.startswith("_")}
        self.encoder, self.decoder = model.encoder, model.decoder
        for block, stride in zip(self.decoder.block, reversed(model.config.downsampling_ratios)):
            block.conv_t1.output_padding = (stride % 2,)
        self.strides = tuple(model.config.downsampling_ratios)
        for convolution in self._convolutions():
            # diffusers' kind of weight normalisation makes copies of a model (an average of weights, say) impossible
            nn.utils.remove_weight_norm(convolution)
            if normalise_weights:
                weight_norm(convolution)

    def posterior(self, waveform: Tensor, latent_lens: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation `[B, L, D]` of `[B, 1 or C, L * hop_length]`; 0 and 1 behind each clip."""
        x, lens = waveform.expand(-1, self.audio_channels, -1), latent_lens * self.hop_length
        x = _inside(self.encoder.conv1(x), lens)
        for block, stride in zip(self.encoder.block, self.strides):
            x = _residual_units(block, x, lens)
            lens = lens // stride
            x = _inside(block.conv1(block.snake1(x)), lens)
        x = self.encoder.conv2(self.encoder.snake1(x))
        mean, scale = x.transpose(1, 2).chunk(2, dim=-1)
        outside = ~length_mask(latent_lens, mean.shape[1]).unsqueeze(-1)
        return mean.masked_fill(outside, 0), (softplus(scale) + 1e-4).masked_fill(outside, 1)

    def analyse(self, waveform: Tensor, latent_lens: Tensor, sample: bool) -> Tensor:
        mean, std = self.posterior(waveform, latent_lens)
        return mean + std * torch.randn_like(mean) if sample else mean

    def synthesise(self, latents: Tensor, latent_lens: Tensor) -> Tensor:
        x, lens = _inside(self.decoder.conv1(latents.transpose(1, 2)), latent_lens), latent_lens
        for block, stride in zip(self.decoder.block, reversed(self.strides)):
            lens = lens * stride
            x = _inside(block.conv_t1(block.snake1(x)), lens)
            x = _residual_units(block, x, lens)
        x = self.decoder.conv2(self.decoder.snake1(x))
        return x.mean(1, keepdim=True)

    def forward(self, waveform: Tensor, audio_lens: Tensor, sample: bool = True) -> AutoencoderOutput:
        """Through the bottleneck and back, for training: `[B, 1, T]`, `[B]`; gradients flow through the sample."""
        num_samples, latent_lens = waveform.shape[-1], self.latent_lens_of(audio_lens)
        mean, std = self.posterior(whole_frames(waveform, audio_lens, self.hop_length), latent_lens)
        latents = self._masked(mean + std * torch.randn_like(mean), latent_lens) if sample else mean
        decoded = self.synthesise(latents, latent_lens)[..., :num_samples]
        decoded = decoded.masked_fill(~length_mask(audio_lens, num_samples).unsqueeze(1), 0)
        return AutoencoderOutput(decoded, latents, latent_lens, gaussian_kl(mean, std, latent_lens))

    def remove_weight_norm(self) -> None:
        """Fold weight normalisation into the weights, for export and speed; they can be trained no longer as before."""
        for convolution in self._convolutions():
            if is_parametrized(convolution):
                remove_parametrizations(convolution, "weight", leave_parametrized=True)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write what `pretrained` reads, and diffusers too: the model without its statistics."""
        model = _quietly(require("diffusers", extra="generation").AutoencoderOobleck, **self._config)
        with torch.no_grad():
            for name, theirs in model.named_modules():
                _copy_into(theirs, self.get_submodule(name))
        model.save_pretrained(folder)

    def _convolutions(self) -> list[nn.Module]:
        return [module for module in self.modules() if isinstance(module, _CONVOLUTIONS)]


def _inside(x: Tensor, lens: Tensor) -> Tensor:
    """`[B, C, T]`, made zero behind each clip: what the next convolution would find if the clip stood alone."""
    return x.masked_fill_(~length_mask(lens, x.shape[-1]).unsqueeze(1), 0)


def _residual_units(block: nn.Module, x: Tensor, lens: Tensor) -> Tensor:
    for unit in (block.res_unit1, block.res_unit2, block.res_unit3):
        x = _inside(unit(x), lens)
    return x


def _copy_into(theirs: nn.Module, ours: nn.Module) -> None:
    """One layer's own parameters, of ours to diffusers', whose weights are normalised in another way."""
    if isinstance(ours, _CONVOLUTIONS):
        theirs.weight_v.copy_(ours.weight)
        theirs.weight_g.copy_(torch.norm_except_dim(ours.weight, 2, 0))
        if ours.bias is not None:
            theirs.bias.copy_(ours.bias)
    elif hasattr(ours, "alpha"):  # Snake
        theirs.alpha.copy_(ours.alpha)
        theirs.beta.copy_(ours.beta)


def _quietly(make: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """`make(...)` without torch's word that diffusers' kind of weight normalisation is old: ours replaces it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return make(*arguments, **options)


def _load(pretrained: str, subfolder: str | None, sample_rate: int) -> Any:
    library = require("diffusers", extra="generation")
    try:
        model = _quietly(library.AutoencoderOobleck.from_pretrained, pretrained, subfolder=subfolder)
    except (OSError, ValueError) as error:
        told = str(error).strip().splitlines()[0]
        raise UserError(f"pretrained: no AutoencoderOobleck can be read from {pretrained}: {told}") from None
    if model.config.encoder_hidden_size != 2 * model.config.decoder_input_channels:
        widths = f"{model.config.encoder_hidden_size} channels, its decoder takes {model.config.decoder_input_channels}"
        raise UserError(f"pretrained: the encoder of {pretrained} gives {widths}: not half of them")
    if model.config.sampling_rate != sample_rate:
        has = model.config.sampling_rate
        raise UserError(f"pretrained: {pretrained} is of {has} Hz, but sample_rate is {sample_rate}")
    return model

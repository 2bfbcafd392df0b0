"""Discriminators over complex spectrograms (Défossez et al. 2022, arXiv:2210.13438, section 3.4 and figure 2).

Shapes: B batch, T samples, C channels, L frames, N bins of the spectrum.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, pad
from torch.nn.utils.parametrizations import weight_norm

from components.layers import length_mask
from components.losses import Judgement


class StftDiscriminator(nn.Module):
    """Convolutions over the real and the imaginary part of one spectrogram, dilated in time, strided over bins.

    Args:
        n_fft: samples of a window; the hop is a quarter of it.
        num_channels: C of every layer.
        dilations: in time, of each strided layer.
    """

    def __init__(self, n_fft: int, num_channels: int = 32, dilations: Sequence[int] = (1, 2, 4)) -> None:
        super().__init__()
        self.n_fft, self.hop_length = n_fft, n_fft // 4
        window = torch.hann_window(n_fft)
        # of unit power: logits begin at one scale whatever the window
        self.register_buffer("window", window / window.square().sum().sqrt(), persistent=False)
        layers = [nn.Conv2d(2, num_channels, (3, 9), padding=(1, 4))]
        for dilation in dilations:
            shape = {"stride": (1, 2), "dilation": (dilation, 1), "padding": (dilation, 4)}
            layers.append(nn.Conv2d(num_channels, num_channels, (3, 9), **shape))
        layers.append(nn.Conv2d(num_channels, num_channels, 3, padding=1))
        self.layers = nn.ModuleList(weight_norm(layer) for layer in layers)
        self.to_logits = weight_norm(nn.Conv2d(num_channels, 1, 3, padding=1))

    def forward(self, waveform: Tensor, audio_lens: Tensor) -> Judgement:
        """`[B, 1, T]`, zero behind each clip, and `[B]` to what it makes of them."""
        lens = 1 + audio_lens // self.hop_length
        with torch.autocast(waveform.device.type, enabled=False):
            samples = pad(waveform.squeeze(1).float(), (self.n_fft // 2, self.n_fft // 2))
            spectrum = torch.fft.rfft(samples.unfold(-1, self.n_fft, self.hop_length) * self.window)
        mask = length_mask(lens, spectrum.shape[1])[:, None, :, None]
        x = torch.stack([spectrum.real, spectrum.imag], dim=1).masked_fill(~mask, 0)  # [B, 2, L, N]
        features = []
        for layer in self.layers:
            x = leaky_relu(layer(x), 0.2).masked_fill(~mask, 0)
            features.append(x)
        return Judgement(self.to_logits(x).squeeze(1), features, lens)


class MultiScaleStftDiscriminator(nn.Module):
    """Several `StftDiscriminator`s, from coarse to fine; a clip of a padded batch is judged as if it stood alone.

    Args:
        n_ffts: samples of each one's window.
        num_channels: of every layer.
    """

    def __init__(self, n_ffts: Sequence[int] = (2048, 1024, 512, 256, 128), num_channels: int = 32) -> None:
        super().__init__()
        self.discriminators = nn.ModuleList(StftDiscriminator(n_fft, num_channels) for n_fft in n_ffts)

    def forward(self, waveform: Tensor, audio_lens: Tensor) -> list[Judgement]:
        """`[B, 1, T]`, `[B]` to one judgement of each scale."""
        waveform = waveform.masked_fill(~length_mask(audio_lens, waveform.shape[-1]).unsqueeze(1), 0)
        return [discriminator(waveform, audio_lens) for discriminator in self.discriminators]

"""Fewer frames in front of an encoder.  Shapes: B batch, L input frames, T output frames, F features, D model,
C channels."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear, pad, relu

from components.layers.visible_frames import padding_of
from utils.errors import UserError

_STAGES = {2: ((3, 2), (3, 1)), 4: ((3, 2), (3, 2)), 6: ((3, 2), (5, 3)), 8: ((3, 2), (3, 2), (3, 2))}


class Subsampling(nn.Module, ABC):
    """Features `[B, L, F]` to `[B, T, D]` where T is `ceil(L / factor)`; each clip as if it stood alone.

    Attributes:
        factor: input frames per output frame.
        look_ahead: output frame `t` sees input frames up to `factor t + look_ahead`.
    """

    factor: int
    look_ahead: int

    def output_lens(self, lens: Tensor) -> Tensor:
        """Frames that come out, `[B]` to `[B]`."""
        return (lens + self.factor - 1) // self.factor

    @abstractmethod
    def forward(self, x: Tensor, lens: Tensor) -> tuple[Tensor, Tensor]:
        """`[B, L, F]` with anything in the padding, `[B]`, to `[B, T, D]` and its lengths `[B]`."""

    @abstractmethod
    def stream(self) -> SubsamplingStream:
        """The same for frames as they come."""


class SubsamplingStream(ABC):
    """Frames as they come: what `push`, at least once, and then `finish` return, in a row, is what `forward` makes."""

    @abstractmethod
    def push(self, x: Tensor) -> Tensor:
        """`[B, l, F]` more frames to `[B, t, D]`, as many as they suffice for, or none."""

    @abstractmethod
    def finish(self) -> Tensor:
        """`[B, t, D]`, what was still waiting for frames."""


class Conv2dSubsampling(Subsampling):
    """Convolutions over time and frequency, each with ReLU, then a linear map (Dong et al. 2018, "Speech-Transformer").

    Args:
        input_dim: F.
        dim: D.
        factor: 2, 4, 6 or 8; kernels of 3 with stride 2, for 6 a last one of 5 with stride 3.
        channels: C; None for D. Most of a small model's arithmetic is here: `T F / 4 9 C^2` for factor 4.
        separable: convolutions behind the first are a depthwise and a pointwise one (Rekesh et al. 2023,
            arXiv:2305.05084, 2.1).

    Raises:
        UserError: the factor is another.
    """

    def __init__(
        self, input_dim: int, dim: int, factor: int = 4, channels: int | None = None, separable: bool = False
    ) -> None:
        super().__init__()
        if factor not in _STAGES:
            raise UserError(f"factor: expected one of {', '.join(map(str, _STAGES))}, got {factor}")
        channels = channels or dim
        self.factor, self.look_ahead, bands = factor, 0, input_dim
        self.convs = nn.ModuleList()
        for number, (kernel, stride) in enumerate(_STAGES[factor]):
            self.convs.append(_Conv(channels if number else 1, channels, kernel, stride, separable and number > 0))
            self.look_ahead += kernel // 2 * math.prod(s for _, s in _STAGES[factor][:number])
            bands = -(-bands // stride)
        self.out = nn.Linear(channels * bands, dim)

    def forward(self, x: Tensor, lens: Tensor) -> tuple[Tensor, Tensor]:
        """`[B, L, F]`, `[B]` to `[B, T, D]`, `[B]`."""
        padding, step = padding_of(lens, x.shape[1]), 1
        if padding is not None:
            x = x.masked_fill(padding.unsqueeze(-1), 0)
        x = x.unsqueeze(-1).permute(0, 3, 1, 2)  # channels lie last, so that no kernel has to turn what it is given
        for conv in self.convs:
            if padding is not None and step > 1:  # behind a clip is what biases make of zeros
                x = x * (~padding[:, None, ::step, None]).to(x.dtype)
            x, step = conv(x), step * conv.stride
        return self._project(x), self.output_lens(lens)

    def stream(self) -> SubsamplingStream:
        return _Conv2dStream(self)

    def _project(self, x: Tensor) -> Tensor:
        """`[B, C, T, F']` to `[B, T, D]`."""
        # The weights belong to channels before bands; turning them costs less than turning the frames.
        weight = self.out.weight.unflatten(1, (x.shape[1], -1)).transpose(1, 2).flatten(1)
        return linear(x.permute(0, 2, 3, 1).flatten(2), weight, self.out.bias)


class _Conv(nn.Module):
    """One convolution and ReLU, `[B, C, L, F]` to `[B, C, ceil(L / stride), ceil(F / stride)]`."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, separable: bool) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=inputs if separable else 1)
        self.mix = nn.Conv2d(outputs, outputs, 1) if separable else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return relu(self.mix(self.conv(x)), inplace=True)

    def within(self, x: Tensor) -> Tensor:
        """The same without zeros before and behind the frames."""
        conv = self.conv
        x = conv2d(x, conv.weight, conv.bias, conv.stride, (0, self.kernel // 2), groups=conv.groups)
        return relu(self.mix(x))


class _Conv2dStream(SubsamplingStream):
    def __init__(self, subsampling: Conv2dSubsampling) -> None:
        self._subsampling = subsampling
        self._waiting: list[Tensor | None] = [None] * len(subsampling.convs)

    def push(self, x: Tensor) -> Tensor:
        return self._subsampling._project(self._advance(x.unsqueeze(1), is_last=False))

    def finish(self) -> Tensor:
        return self._subsampling._project(self._advance(self._waiting[0][:, :, :0], is_last=True))

    def _advance(self, x: Tensor, is_last: bool) -> Tensor:
        for i, conv in enumerate(self._subsampling.convs):
            margin = conv.kernel // 2
            held = self._waiting[i]
            x = pad(x, (0, 0, margin, 0)) if held is None else torch.cat([held, x], dim=2)
            if is_last:
                x = pad(x, (0, 0, 0, margin))
            num_frames = max(0, (x.shape[2] - conv.kernel) // conv.stride + 1)
            self._waiting[i] = x[:, :, num_frames * conv.stride :]
            if num_frames:
                x = conv.within(x[:, :, : (num_frames - 1) * conv.stride + conv.kernel])
            else:
                x = x.new_zeros(len(x), conv.conv.out_channels, 0, -(-x.shape[3] // conv.stride))
        return x


class StackSubsampling(Subsampling):
    """Neighbouring frames, one behind the other, through a linear map; with factor 1 the linear map alone.

    Args:
        input_dim: F.
        dim: D.
        factor: frames of a stack; the last is filled up with zeros.
    """

    def __init__(self, input_dim: int, dim: int, factor: int = 4) -> None:
        super().__init__()
        self.factor, self.look_ahead = factor, factor - 1
        self.out = nn.Linear(factor * input_dim, dim)

    def forward(self, x: Tensor, lens: Tensor) -> tuple[Tensor, Tensor]:
        """`[B, L, F]`, `[B]` to `[B, T, D]`, `[B]`."""
        padding = padding_of(lens, x.shape[1])
        if padding is not None:
            x = x.masked_fill(padding.unsqueeze(-1), 0)
        return self._stack(x), self.output_lens(lens)

    def stream(self) -> SubsamplingStream:
        return _StackStream(self)

    def _stack(self, x: Tensor) -> Tensor:
        x = pad(x, (0, 0, 0, -x.shape[1] % self.factor))
        return self.out(x.unflatten(1, (x.shape[1] // self.factor, self.factor)).flatten(2))


class _StackStream(SubsamplingStream):
    def __init__(self, subsampling: StackSubsampling) -> None:
        self._subsampling, self._waiting = subsampling, None

    def push(self, x: Tensor) -> Tensor:
        x = x if self._waiting is None else torch.cat([self._waiting, x], dim=1)
        full = x.shape[1] - x.shape[1] % self._subsampling.factor
        self._waiting = x[:, full:]
        return self._subsampling._stack(x[:, :full])

    def finish(self) -> Tensor:
        return self._subsampling._stack(self._waiting)


class NoSubsampling(Subsampling):
    """Features as they are: D is F. For an encoder whose first layer takes another width, such as SANM's."""

    def __init__(self, input_dim: int, dim: int) -> None:
        super().__init__()
        self.factor, self.look_ahead = 1, 0

    def forward(self, x: Tensor, lens: Tensor) -> tuple[Tensor, Tensor]:
        """`[B, L, F]`, `[B]` to the same, zero behind each clip."""
        padding = padding_of(lens, x.shape[1])
        return (x if padding is None else x.masked_fill(padding.unsqueeze(-1), 0)), lens

    def stream(self) -> SubsamplingStream:
        return _NoStream()


class _NoStream(SubsamplingStream):
    def push(self, x: Tensor) -> Tensor:
        self._none = x[:, :0]
        return x

    def finish(self) -> Tensor:
        return self._none

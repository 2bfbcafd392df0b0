"""Recurrent layers behind convolutions.  Shapes: B batch, L input frames, T output frames, F features, D model."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from components.layers.dropout import Dropout
from components.layers.masking import length_mask
from components.models.asr.encoders.base import SpeechEncoder
from components.models.asr.subsampling import Conv2dSubsampling, Subsampling
from components.models.asr.types import Encoded
from utils.errors import UserError

_CELLS = {"gru": nn.GRU, "lstm": nn.LSTM}


class RecurrentEncoder(SpeechEncoder):
    """Subsampling and recurrent layers that read a clip from both ends, as Deep Speech 2 (Amodei et al. 2016,
    arXiv:1512.02595), with layer normalisation and residual connections: quick to learn from few hours, and on a CPU.

    Args:
        input_dim: F.
        dim: D, half of it for each direction.
        num_layers: recurrent ones.
        cell: "gru", or "lstm", which has a third more parameters and takes half the time on a CPU.
        dropout: in front of each layer.
        subsampling: `(input_dim, dim) -> Subsampling`.
        gradient_checkpointing: compute the layers again in backward instead of keeping what they need for it.

    Raises:
        UserError: the cell is another, or D is odd.
    """

    def __init__(
        self,
        input_dim: int,
        dim: int = 192,
        num_layers: int = 1,
        cell: str = "gru",
        dropout: float = 0.1,
        subsampling: Callable[[int, int], Subsampling] = Conv2dSubsampling,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if cell not in _CELLS:
            raise UserError(f"cell: expected one of {', '.join(_CELLS)}, got {cell!r}")
        if dim % 2:
            raise UserError(f"dim: {dim} channels can not be halved between two directions")
        self.subsample = subsampling(input_dim, dim)
        self.layers = nn.ModuleList(RecurrentLayer(dim, cell, dropout) for _ in range(num_layers))
        self.norm = nn.LayerNorm(dim)
        self.output_dim, self.subsampling, self.num_layers = dim, self.subsample.factor, num_layers
        self.gradient_checkpointing = gradient_checkpointing

    def output_lens(self, feature_lens: Tensor) -> Tensor:
        """T: `ceil(L / subsampling)`."""
        return self.subsample.output_lens(feature_lens)

    def forward(self, features: Tensor, feature_lens: Tensor, layers: Collection[int] = ()) -> Encoded:
        """`features [B, L, F]`, anything in the padding, `feature_lens [B]`, to `Encoded`.

        Args:
            layers: numbers of the layers whose outputs are wanted too, normalised as the last one's.

        Raises:
            UserError: there is no layer of a number.
        """
        self._check(layers)
        x, lens = self.subsample(features, feature_lens)
        padding, turned = ~length_mask(lens, x.shape[1]).unsqueeze(-1), turned_frames(lens, x.shape[1])
        inner: dict[int, Tensor] = {}
        for number, layer in enumerate(self.layers, 1):
            if self.training and self.gradient_checkpointing:
                x = checkpoint(layer, x, turned, use_reentrant=False)
            else:
                x = layer(x, turned)
            if number in layers:
                inner[number] = self.norm(x).masked_fill(padding, 0)
        hidden = inner[self.num_layers] if self.num_layers in inner else self.norm(x).masked_fill(padding, 0)
        return Encoded(hidden, lens, inner)

    def record_attention(self) -> AbstractContextManager[dict[int, Tensor]]:
        """There is none: the mapping stays empty."""
        return nullcontext({})

    def gradient_checkpointing_enable(self) -> None:
        self.gradient_checkpointing = True


class RecurrentLayer(nn.Module):
    """Normalisation, dropout and a recurrent network for each direction, added to what came in.

    Clips are not packed: what is read forwards meets the padding after the clip, and so does what is read backwards if
    only the clip's own frames are turned round. That needs no lengths on the host, has oneDNN's LSTM on a CPU, and is
    exact.

    Args:
        dim: D, even.
        cell: "gru" or "lstm".
        dropout: of what goes into the networks.
    """

    def __init__(self, dim: int, cell: str, dropout: float) -> None:
        super().__init__()
        self.norm, self.dropout = nn.LayerNorm(dim), Dropout(dropout)
        self.forwards, self.backwards = (_CELLS[cell](dim, dim // 2, batch_first=True) for _ in range(2))

    def forward(self, x: Tensor, turned: Tensor) -> Tensor:
        """`x [B, T, D]` to the same; `turned` is of `turned_frames`."""
        given = self.dropout(self.norm(x))
        ahead, back = self.forwards(given)[0], self.backwards(_picked(given, turned))[0]
        return x + torch.cat([ahead, _picked(back, turned)], dim=-1)


def turned_frames(lens: Tensor, num_frames: int) -> Tensor:
    """Places of frames among the `B * num_frames` of a batch that turn each clip round and leave its padding, `[B *
    num_frames]`; done twice, all is as it was."""
    places = torch.arange(num_frames, device=lens.device)
    mirrored = lens.unsqueeze(1) - 1 - places
    begins = num_frames * torch.arange(len(lens), device=lens.device)
    return (torch.where(mirrored < 0, places, mirrored) + begins.unsqueeze(1)).flatten()


def _picked(x: Tensor, places: Tensor) -> Tensor:
    """`[B, T, D]` to the same."""
    return x.flatten(0, 1).index_select(0, places).view_as(x)

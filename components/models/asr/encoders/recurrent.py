"""Convolutions and recurrent layers.  Shapes: B batch, L input frames, T output frames, F features, D, H hidden."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

from components.models.asr.encoders.base import SpeechEncoder
from components.models.asr.subsampling import Conv2dSubsampling, Subsampling
from components.models.asr.types import Encoded


class RecurrentEncoder(SpeechEncoder):
    """Subsampling and bidirectional GRUs, as Deep Speech 2 (Amodei et al. 2016, arXiv:1512.02595): quick to learn from
    few hours, and on a CPU.

    Args:
        input_dim: F.
        dim: D, half of it for each direction.
        num_layers: of the GRU.
        dropout: in front of each layer.
        subsampling: `(input_dim, dim) -> Subsampling`.

    Raises:
        UserError: `forward` was asked for a layer that is not there.
    """

    def __init__(
        self,
        input_dim: int,
        dim: int = 192,
        num_layers: int = 1,
        dropout: float = 0.1,
        subsampling: Callable[[int, int], Subsampling] = Conv2dSubsampling,
    ) -> None:
        super().__init__()
        self.subsample = subsampling(input_dim, dim)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(num_layers + 1))
        self.layers = nn.ModuleList(
            nn.GRU(dim, dim // 2, batch_first=True, bidirectional=True) for _ in range(num_layers)
        )
        self.dropout = nn.Dropout(dropout)
        self.output_dim, self.subsampling, self.num_layers = dim, self.subsample.factor, num_layers
        self._checkpoints = False

    def output_lens(self, feature_lens: Tensor) -> Tensor:
        return self.subsample.output_lens(feature_lens)

    def forward(self, features: Tensor, feature_lens: Tensor, layers: Collection[int] = ()) -> Encoded:
        self._check(layers)
        hidden, lens = self.subsample(features, feature_lens)
        on_host = lens.cpu()  # where packing wants them
        found: dict[int, Tensor] = {}
        for number, layer in enumerate(self.layers):
            wanted = self._checkpoints and torch.is_grad_enabled()
            arguments = (layer, self.norms[number], hidden, on_host)
            hidden = checkpoint(self._layer, *arguments, use_reentrant=False) if wanted else self._layer(*arguments)
            if number + 1 in layers:
                found[number + 1] = self._finished(hidden, lens)
        return Encoded(self._finished(hidden, lens), lens, found)

    def record_attention(self) -> AbstractContextManager[dict[int, Tensor]]:
        """It has none: the mapping stays empty."""
        return nullcontext({})

    def gradient_checkpointing_enable(self) -> None:
        self._checkpoints = True

    def _layer(self, layer: nn.GRU, norm: nn.LayerNorm, hidden: Tensor, lens: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.dropout(norm(hidden)), lens, batch_first=True, enforce_sorted=False)
        out, _ = pad_packed_sequence(layer(packed)[0], batch_first=True, total_length=hidden.shape[1])
        return hidden + out

    def _finished(self, hidden: Tensor, lens: Tensor) -> Tensor:
        padding = torch.arange(hidden.shape[1], device=hidden.device) >= lens.unsqueeze(1)
        return self.norms[-1](hidden).masked_fill(padding.unsqueeze(-1), 0)

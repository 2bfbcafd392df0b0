"""What all encoders of speech have in common.  Shapes: B batch, L input frames, T output frames, F features, D, H."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager

from torch import Tensor, nn

from components.models.asr.types import Encoded
from utils.errors import UserError


class SpeechEncoder(nn.Module, ABC):
    """Features to what a recogniser's heads read; each clip of a padded batch as if it stood alone.

    Attributes:
        output_dim: D.
        subsampling: input frames per output frame.
        num_layers: layers are numbered from 1 to this.
    """

    output_dim: int
    subsampling: int
    num_layers: int

    @abstractmethod
    def output_lens(self, feature_lens: Tensor) -> Tensor:
        """T of clips of `feature_lens` frames, integers of any shape."""

    @abstractmethod
    def forward(self, features: Tensor, feature_lens: Tensor, layers: Collection[int] = ()) -> Encoded:
        """`features [B, L, F]`, anything in the padding, `feature_lens [B]`, to `Encoded`.

        Args:
            layers: numbers of the layers whose outputs are wanted too, normalised as the last one's.

        Raises:
            UserError: there is no layer of a number.
        """

    @abstractmethod
    def record_attention(self) -> AbstractContextManager[dict[int, Tensor]]:
        """See `record_attention` of this package."""

    @abstractmethod
    def gradient_checkpointing_enable(self) -> None:
        """Compute the layers again in backward instead of keeping what they need for it."""

    def _check(self, layers: Collection[int]) -> None:
        for number in layers:
            if not 1 <= number <= self.num_layers:
                raise UserError(f"the encoder has layers 1 to {self.num_layers}, not {number}")


def record_attention(encoder: SpeechEncoder) -> AbstractContextManager[dict[int, Tensor]]:
    """Within the context, the attention weights of the last forward: layer's number -> `[B, H, T, T]`, query by key.

    Rows of queries in the padding mean nothing. Outside of it the forward keeps its fast kernels.
    """
    return encoder.record_attention()


@contextmanager
def recording(attentions: Collection[nn.Module]) -> Iterator[dict[int, Tensor]]:
    """Gives modules with a `recorder` one that stores by the module's number, from 1."""
    maps: dict[int, Tensor] = {}
    for number, attention in enumerate(attentions, 1):
        attention.recorder = _store(maps, number)
    try:
        yield maps
    finally:
        for attention in attentions:
            attention.recorder = None


def _store(maps: dict[int, Tensor], number: int) -> Callable[[Tensor], None]:
    def store(weights: Tensor) -> None:
        maps[number] = weights

    return store

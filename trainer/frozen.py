"""Frozen parameters that a checkpoint can do without, since building the model brings them back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from trainer.checkpoint import tensor_sha256
from utils.errors import UserError

if TYPE_CHECKING:
    from trainer.trainer import Trainer


class FrozenParameters:
    """Remembers how the model was built; what is frozen and still the same need not be saved.

    Raises:
        UserError: the model is sharded, so that no rank sees whole parameters.
    """

    def __init__(self, trainer: Trainer) -> None:
        if trainer.is_sharded:
            raise UserError("callbacks.checkpoint.only_trainable: does not go with FSDP, use DDP or set it to false")
        self._is_writer = trainer.is_main_process
        self._model = trainer.unwrapped_model
        self._at_start = {name: tensor_sha256(tensor) for name, tensor in self._parameters().items()}
        self._known: dict[str, tuple[int, str]] = {}

    def unchanged(self) -> dict[str, str]:
        """Name -> sha256 of the parameters that are frozen now and as they were at the start; on rank 0."""
        frozen = {name: tensor for name, tensor in self._parameters().items() if not tensor.requires_grad}
        digests = {name: self._digest(name, tensor) for name, tensor in frozen.items()}
        return {name: digest for name, digest in digests.items() if digest == self._at_start[name]}

    def _parameters(self) -> dict[str, Tensor]:
        if not self._is_writer:
            return {}
        saved = self._model.state_dict(keep_vars=True)  # also the second names of tied ones
        return {name: tensor for name, tensor in saved.items() if isinstance(tensor, nn.Parameter)}

    def _digest(self, name: str, tensor: Tensor) -> str:
        """Computed anew only where something was written into the tensor since."""
        version = tensor._version
        if name not in self._known or self._known[name][0] != version:
            self._known[name] = version, tensor_sha256(tensor)
        return self._known[name][1]

"""State of a model whose parameters are sharded over ranks (FSDP 2): gathered whole for a checkpoint, dealt out again.

All functions are collective. A checkpoint of a sharded run has the files of any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def model_state(model: nn.Module) -> dict[str, Tensor]:
    """All weights, on the CPU of rank 0; the other ranks get an empty dict."""
    return get_model_state_dict(model, options=_WHOLE)  # type: ignore[return-value]


def load_model_state(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Deal whole weights out to the shards."""
    set_model_state_dict(model, dict(tensors), options=StateDictOptions(full_state_dict=True))


def optimizer_state(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """The whole state, keyed by parameter names."""
    return dict(get_optimizer_state_dict(model, optimizer, options=_WHOLE))


def load_optimizer_state(model: nn.Module, optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Deal a whole state out to the shards."""
    set_optimizer_state_dict(model, optimizer, dict(state), options=StateDictOptions(full_state_dict=True))

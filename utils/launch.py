"""Where this run can take place: the processes that were launched, the device that was asked for."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from utils.errors import UserError

if TYPE_CHECKING:
    from accelerate import PartialState


def process_state() -> PartialState:
    """The processes of this run, found as the Trainer finds them: on the CPU where the launcher says so."""
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


def use_cores_considerately() -> None:
    """Let idle OpenMP threads sleep after a short spin. Must come before torch is loaded; what is set already stays.

    A spinning thread takes its core from the thread it waits for: on two busy cores a step was 12 times slower so.
    Without any spin a step on free cores was a quarter slower; a short one costs nothing (docs/numbers.md).
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def check_world(num_processes: int | None = None) -> None:
    """Refuse to go on as copies that would each do the whole work; called before anything costly.

    Args:
        num_processes: how many found each other; None asks accelerate.

    Raises:
        UserError: the launcher started another number of processes than found each other.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched == 1:
        return
    found = process_state().num_processes if num_processes is None else num_processes
    if launched != found:
        raise UserError(
            f"{launched} processes were launched but {found} found each other, so each would train alone: launch as "
            "many processes as this machine has GPUs, or on CPUs: "
            f"ACCELERATE_USE_CPU=true torchrun --nproc_per_node {launched} train.py"
        )


def end_together() -> None:
    """Leave a finished run. Processes joined by gloo leave at once, without the interpreter's own way out.

    There torch 2.11 sometimes aborts ("terminate called without an active exception", one run in some ten), and the
    launcher takes a run that has done all its work for a failed one.
    """
    state = process_state()
    if state.num_processes == 1 or state.backend != "gloo":
        return
    state.wait_for_everyone()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def pick_device(name: str) -> str:
    """A device by name; "auto" takes a GPU where there is one.

    Raises:
        UserError: there is no such device here.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device: {name!r} can not be used here: {str(error).splitlines()[0]}") from None
    return name

"""One checkpoint at a time, written at once or behind the training, by all ranks or by none.

Ranks talk to each other only from the thread that trains: collectives from two threads would deadlock. While files are
written they meet in the partial folder: a rank's file bears its name once it is whole, `rank_N.failed` tells why there
is none, and rank 0 publishes the folder when it has seen a file of every rank.
"""

from __future__ import annotations

import copy
import logging
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors import SafetensorError
from torch import Tensor

from trainer import checkpoint as checkpoints
from trainer.checkpoint import Checkpoint

logger = logging.getLogger(__name__)

PEER_SECONDS = 300.0  # how long rank 0 waits for the small files of the others
_GRACE_SECONDS = 5.0  # the same, once the run is ending in an error
_POLL_SECONDS = 0.02


class SaveError(RuntimeError):
    """A checkpoint could not be written; those before it are as they were. Raised on every rank alike."""


@dataclass(frozen=True)
class After:
    """What follows a save.

    Attributes:
        whole: called with the folder once it is published; on rank 0, in the thread that wrote it.
        failed: called on every rank, in the thread that trains, where there will be no such folder.
    """

    whole: Callable[[Path], None] = lambda folder: None
    failed: Callable[[], None] = lambda: None


class CheckpointWriter:
    """Writes the checkpoints of a run. All ranks call the same methods in the same order."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._buffers = HostBuffers()
        self._under_way: _Save | None = None

    def save(
        self, checkpoint: Checkpoint, directory: Path, after: After | None = None, asynchronous: bool = False
    ) -> Path:
        """Write `checkpoint` under `directory` and return its folder; an asynchronous save makes it only later.

        Waits for the save before it. Collective.

        Raises:
            SaveError: some rank could not write. Of an asynchronous save: could not begin to.
        """
        self.finish()
        accelerator = self._accelerator
        save = _Save(checkpoint, directory, accelerator.process_index, accelerator.num_processes, after or After())
        self._settle(save, save.begin())
        if asynchronous:
            save.start(self._buffers)
            self._under_way = save
        else:
            self._settle(save, save.run())
        return save.final

    def finish(self) -> None:
        """Wait for the save under way. That it failed has been logged, and told to `After.failed`. Collective."""
        save, self._under_way = self._under_way, None
        if save is not None:
            with suppress(SaveError):
                self._settle(save, save.join())

    @property
    def is_busy(self) -> bool:
        """Whether this rank is still writing behind the training."""
        return self._under_way is not None and self._under_way.is_running

    def close(self) -> None:
        """Let this rank's part of a save come to its end without the others: for a run that ends in an error."""
        save, self._under_way = self._under_way, None
        if save is not None:
            save.hurry()
            save.join()

    def _settle(self, save: _Save, reason: str | None) -> None:
        """Exchange what came of a save, or of its beginning; a failure of one rank is a failure of all."""
        reasons = [reason] if self._accelerator.num_processes == 1 else gather_object([reason])
        if not any(reasons):
            return
        save.remove()
        save.after.failed()
        message = f"checkpoint {save.final} could not be written: {'; '.join(filter(None, reasons))}"
        if self._accelerator.is_main_process:
            logger.error("%s. Older ones are as they were, and the run goes on", message)
        raise SaveError(message)


class _Save:
    """One rank's part in the writing of one folder. Its steps return None, or why they failed."""

    def __init__(self, checkpoint: Checkpoint, directory: Path, rank: int, num_ranks: int, after: After) -> None:
        self.final = directory / f"step_{checkpoint.global_step:08d}"
        self.after = after
        self._partial = directory / f".{self.final.name}.partial"
        self._checkpoint, self._rank, self._num_ranks = _without_frozen(checkpoint), rank, num_ranks
        self._thread: threading.Thread | None = None
        self._reason: str | None = None
        self._deadline = float("inf")

    def begin(self) -> str | None:
        """Make the folder; on rank 0."""
        return self._attempt(self._make_folder)

    def run(self) -> str | None:
        """Write, and on rank 0 publish."""
        self._reason = self._reason or self._attempt(self._write)
        if self._reason is not None:
            self._give_up()
        return self._reason

    def start(self, buffers: HostBuffers) -> None:
        """Copy the state, then write it in a thread."""
        self._reason = self._attempt(lambda: self._take_snapshot(buffers))
        self._thread = threading.Thread(target=self.run, name="checkpoint", daemon=True)
        self._thread.start()

    def join(self) -> str | None:
        """Wait for the thread."""
        if self._thread is not None:
            self._thread.join()
        return self._reason

    @property
    def is_running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def hurry(self) -> None:
        """Wait for other ranks no longer than they need who are alive."""
        self._deadline = time.monotonic() + _GRACE_SECONDS

    def remove(self) -> None:
        if self._rank == 0:
            shutil.rmtree(self._partial, ignore_errors=True)

    def _make_folder(self) -> None:
        if self._rank == 0:
            self.remove()
            self._partial.mkdir(parents=True)

    def _take_snapshot(self, buffers: HostBuffers) -> None:
        given = self._checkpoint
        shared = (given.weights, given.training) if self._rank == 0 else ({}, {})
        weights, training, own = buffers.copy((*shared, given.rank))
        self._checkpoint = replace(given, weights=weights, training=training, rank=own)
        self._wait_for_copies = buffers.ready()

    def _write(self) -> None:
        if self._thread is not None:
            self._wait_for_copies()
        checkpoints.write_rank(self._checkpoint.rank, self._partial, self._rank)
        if self._rank != 0:
            return
        checkpoints.write_shared(self._checkpoint, self._partial)
        self._wait_for_peers()
        checkpoints.publish(self._partial, self.final, self._checkpoint.global_step)
        try:
            self.after.whole(self.final)
        except OSError as error:
            logger.error("%s is written, but links or older checkpoints could not be changed: %s", self.final, error)

    def _wait_for_peers(self) -> None:
        deadline = time.monotonic() + PEER_SECONDS
        for rank in range(1, self._num_ranks):
            while not (self._partial / f"rank_{rank}.pt").exists():
                if (self._partial / f"rank_{rank}.failed").exists():
                    raise _PeerFailed(f"rank {rank} could not write its part")
                if time.monotonic() > min(deadline, self._deadline):
                    raise _PeerFailed(f"rank {rank} has not written its part")
                time.sleep(_POLL_SECONDS)

    def _give_up(self) -> None:
        if self._rank == 0:
            self.remove()  # at once: it may fill the disk
        else:
            with suppress(OSError):
                (self._partial / f"rank_{self._rank}.failed").touch()

    def _attempt(self, step: Callable[[], None]) -> str | None:
        try:
            step()
        except _PeerFailed as error:
            return str(error)
        except Exception as error:
            is_expected = isinstance(error, (OSError, SafetensorError))
            logger.warning("rank %d can not save: %s", self._rank, error, exc_info=None if is_expected else error)
            return _describe(error, self._partial.parent)
        return None


class _PeerFailed(Exception):
    pass


def _describe(error: Exception, directory: Path) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    try:
        return f"{lines[0]} ({shutil.disk_usage(directory).free / 1e9:.1f} GB free)"
    except OSError:
        return lines[0]


def _without_frozen(checkpoint: Checkpoint) -> Checkpoint:
    weights = {
        stem: {name: tensor for name, tensor in tensors.items() if name not in checkpoint.frozen}
        for stem, tensors in checkpoint.weights.items()
    }
    return replace(checkpoint, weights=weights)


# ------------------------------------------------------------------------------------------------------------ snapshot


class HostBuffers:
    """Copies nested containers into host memory that is allocated once and used again (pinned, for CUDA tensors)."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[Any, ...], Tensor] = {}
        self._used: dict[tuple[Any, ...], Tensor] = {}
        self._copied: dict[tuple[Any, ...], Tensor] = {}
        self._has_cuda = False

    def copy(self, tree: Any) -> Any:
        """`tree` with every tensor copied; tensors that are one (tied weights) stay one."""
        self._used, self._copied = {}, {}
        copied = self._copy(tree, ())
        self._buffers = self._used
        return copied

    def ready(self) -> Callable[[], None]:
        """A function that waits, in any thread, until the copies queued so far are there."""
        if not self._has_cuda:
            return lambda: None
        event = torch.cuda.Event()
        event.record()
        return event.synchronize

    def _copy(self, tree: Any, path: tuple[Any, ...]) -> Any:
        if isinstance(tree, Tensor):
            return self._copy_tensor(tree.detach(), path)
        if type(tree) in (dict, OrderedDict):
            return type(tree)((key, self._copy(value, (*path, key))) for key, value in tree.items())
        if type(tree) in (list, tuple):
            return type(tree)(self._copy(value, (*path, index)) for index, value in enumerate(tree))
        return copy.deepcopy(tree)

    def _copy_tensor(self, tensor: Tensor, path: tuple[Any, ...]) -> Tensor:
        identity = (tensor.device, tensor.dtype, tensor.data_ptr(), tensor.shape, tensor.stride())
        if tensor.numel() and identity in self._copied:
            return self._copied[identity]
        buffer = self._buffers.get(path)
        if buffer is None or (buffer.shape, buffer.dtype) != (tensor.shape, tensor.dtype):
            buffer = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
        self._has_cuda |= tensor.is_cuda
        buffer.copy_(tensor, non_blocking=tensor.is_cuda)
        self._used[path] = self._copied[identity] = buffer
        return buffer

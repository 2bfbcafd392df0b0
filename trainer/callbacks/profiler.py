"""A torch.profiler trace of a few updates, as a file."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from torch.profiler import ProfilerActivity

from trainer.callbacks.base import Callback

if TYPE_CHECKING:
    from trainer.trainer import Trainer

logger = logging.getLogger(__name__)


class Profiler(Callback):
    """Writes `exp_dir/profile/trace_rank0.json` (chrome://tracing, Perfetto) and a table of the costliest operators.

    Args:
        skip_batches: batches to let go by first.
        num_batches: batches to record.
    """

    def __init__(self, skip_batches: int = 5, num_batches: int = 5, with_stack: bool = False) -> None:
        self._first, self._num_batches, self._with_stack = skip_batches, num_batches, with_stack
        self._seen = 0
        self._profile: Any = None

    def on_train_batch_start(self, trainer: Trainer, batch: Any, batch_idx: int) -> None:
        if self._seen == self._first:
            activities = [ProfilerActivity.CPU]
            if trainer.device.type == "cuda":
                activities.append(ProfilerActivity.CUDA)
            self._profile = torch.profiler.profile(activities=activities, with_stack=self._with_stack)
            self._profile.start()
        self._seen += 1

    def on_train_batch_end(self, trainer: Trainer, output: Any, batch: Any, batch_idx: int) -> None:
        if self._profile is not None and self._seen == self._first + self._num_batches:
            self._write(trainer)

    def on_train_end(self, trainer: Trainer) -> None:
        if self._profile is not None:
            self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        profile, self._profile = self._profile, None
        profile.stop()
        if trainer.exp_dir is None:
            return
        folder = trainer.exp_dir / "profile"
        folder.mkdir(parents=True, exist_ok=True)
        rank = trainer.accelerator.process_index
        profile.export_chrome_trace(str(folder / f"trace_rank{rank}.json"))
        by = "self_cuda_time_total" if trainer.device.type == "cuda" else "self_cpu_time_total"
        table = profile.key_averages().table(sort_by=by, row_limit=25)
        (folder / f"operators_rank{rank}.txt").write_text(table)
        if trainer.is_main_process:
            logger.info("profile of %d batches: %s", self._num_batches, folder)

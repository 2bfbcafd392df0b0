"""A watch over hangs: where no batch is done for too long, every rank writes down its stacks and the run ends."""

from __future__ import annotations

import faulthandler
import math
import os
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainer.trainer import Trainer

EXIT_CODE = 124  # as of timeout(1)


class Watchdog:
    """Looks, from a thread of its own, at counters that the loop keeps anyway; the loop does nothing for it.

    It counts from the first batch on: set-up may take its time, and its collectives have time limits of their own.
    Each rank that hangs writes `exp_dir/stacks_rank<r>.txt`; the others, seeing the file, write theirs. A second timer,
    in C, ends the process even where the interpreter itself is stuck.

    Args:
        timeout: seconds without a finished batch, of training or evaluation; None: no watch.
    """

    def __init__(self, trainer: Trainer, timeout: float | None) -> None:
        self._trainer, self._timeout = trainer, timeout
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        if self._timeout is not None:
            self._folder = self._trainer.exp_dir
            self._others = self._stack_files()
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._timeout is not None:
            self._ended.set()
            self._thread.join()
            faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        assert self._timeout is not None
        period = min(self._timeout / 10, 5.0)
        grace = 2 * period + 2.0
        seen = self._beat()
        fed, armed = math.inf, -math.inf
        while not self._ended.wait(period):
            beat, now = self._beat(), time.monotonic()
            if beat != seen:
                seen, fed = beat, now
                if now - armed > self._timeout / 4:
                    faulthandler.dump_traceback_later(2 * self._timeout + grace, exit=True)
                    armed = now
            if now - fed > self._timeout:
                self._end(f"no batch was finished for {self._timeout:g} s", grace)
            elif self._stack_files() != self._others:
                self._end("another rank hangs", grace)

    def _beat(self) -> tuple[int, int, int]:
        state = self._trainer.state
        return state.global_step, state.batch_idx, self._trainer.num_evaluated

    def _stack_files(self) -> dict[Path, int]:
        if self._folder is None:
            return {}
        return {path: path.stat().st_mtime_ns for path in self._folder.glob("stacks_rank*.txt")}

    def _end(self, reason: str, grace: float) -> None:
        trainer, rank = self._trainer, self._trainer.accelerator.process_index
        where = "stderr"
        if self._folder is None:
            faulthandler.dump_traceback(all_threads=True)
        else:
            path = self._folder / f"stacks_rank{rank}.txt"
            with path.open("w") as file:
                faulthandler.dump_traceback(file, all_threads=True)  # the training's thread is the last
            where = str(path)
        print(
            f"error: [rank {rank}] {reason} (trainer.hang_timeout), in epoch {trainer.epoch}, update "
            f"{trainer.global_step}, batch {trainer.state.batch_idx}: ended; the stacks of all threads are in {where}",
            file=sys.stderr,
            flush=True,
        )
        time.sleep(grace)  # whoever ends first takes the others along: let them write their stacks
        os._exit(EXIT_CODE)

"""A tracker that may fail: the training goes on without it, and looks now and then whether it is back."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from utils.errors import UserError

logger = logging.getLogger(__name__)

_SECONDS_TO_RETRY = 60.0


class TolerantTracker:
    """Passes calls on to a tracker. One that raises is left alone for a minute, then tried again.

    Args:
        make: the tracker's class or partial; called with `exp_dir`, again later where its server can not be reached.

    Raises:
        UserError: of the tracker's constructor, as for a missing package: that no retry would mend.
    """

    def __init__(self, make: Callable[..., Any], exp_dir: Path, name: str) -> None:
        self._make, self._exp_dir, self._name = make, exp_dir, name
        self._tracker: Any = None
        self._not_before = 0.0
        self._num_lost = 0
        self._config: Mapping[str, Any] | None = None
        self._call(None)

    def log(self, metrics: Mapping[str, float], step: int, epoch: int) -> None:
        self._call("log", metrics, step, epoch)

    def log_hyperparameters(self, config: Mapping[str, Any]) -> None:
        if self._tracker is None:
            self._config = config
        else:
            self._call("log_hyperparameters", config)

    def log_files(self, files: Mapping[str, Path], step: int) -> None:
        self._call("log_files", files, step)

    def resume(self, step: int) -> None:
        self._call("resume", step)

    def close(self) -> None:
        if self._tracker is not None:
            self._call("close")

    def _call(self, method: str | None, *arguments: Any) -> None:
        if time.monotonic() < self._not_before:
            self._num_lost += 1
            return
        try:
            if self._tracker is None:
                self._tracker = self._make(exp_dir=self._exp_dir)
                if self._config is not None:
                    self._tracker.log_hyperparameters(self._config)
            if method is not None:
                getattr(self._tracker, method)(*arguments)
        except UserError:
            raise
        except Exception as error:  # whatever its client thinks of
            self._fail(error)
        else:
            self._recover()

    def _fail(self, error: Exception) -> None:
        if not self._num_lost:
            logger.warning(
                "tracker.%s: %s: %s; training goes on, metrics.jsonl has everything; tried again every minute",
                self._name, type(error).__name__, error,
            )  # fmt: skip
        self._num_lost += 1
        self._not_before = time.monotonic() + _SECONDS_TO_RETRY

    def _recover(self) -> None:
        if self._num_lost:
            logger.warning("tracker.%s: it is back; %d calls are lost to it", self._name, self._num_lost)
            self._num_lost, self._not_before = 0, 0.0

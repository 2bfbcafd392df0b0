"""Log lines that are short, and come from one process unless something is wrong."""

from __future__ import annotations

import logging
import os


def rank() -> int:
    """This process's rank among all, as the launcher said; known before anything distributed is set up."""
    return int(os.environ.get("RANK", "0"))


def is_main_process() -> bool:
    """Whether this is the one process that speaks."""
    return rank() == 0


class _ShortFormatter(logging.Formatter):
    """`12:30:59 message`; from a warning on with its level, and off the main process with the rank."""

    def format(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno < logging.WARNING else f"{record.levelname} "
        who = "" if is_main_process() else f"[rank {rank()}] "
        text = f"{self.formatTime(record, '%H:%M:%S')} {level}{who}{record.getMessage()}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


def set_up_logging() -> None:
    """Log to stderr: information on the main process, warnings on all. Does nothing where logging is already set up."""
    root = logging.getLogger()
    if root.handlers:
        return
    handler = logging.StreamHandler()
    handler.setFormatter(_ShortFormatter())
    root.addHandler(handler)
    root.setLevel(logging.INFO if is_main_process() else logging.WARNING)

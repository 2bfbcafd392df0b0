"""`train.py` and `inference.py` as at the prompt, in this process, where torch is loaded already."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Said:
    """What a command printed, and its exit code."""

    out: str
    err: str
    code: int


class _Errors(io.StringIO):
    """What a watchdog would write to when a process hangs must be a file."""

    def fileno(self) -> int:
        return sys.__stderr__.fileno()


def at_prompt(main: Callable[[], None], folder: Path, *arguments: str, stdin: str = "") -> Said:
    """Run `main` with `arguments` in `folder`, on the CPU; its cache is in there too."""
    out, err, code = io.StringIO(), _Errors(), 0
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.chdir(folder)
        patch.setenv("OSTINATO_CACHE", str(folder / "cache"))
        patch.setenv("ACCELERATE_USE_CPU", "true")
        patch.setattr(sys, "argv", ["main.py", *arguments])
        patch.setattr(sys, "stdin", io.StringIO(stdin))
        try:
            main()
        except SystemExit as left:
            code = int(left.code or 0)
    return Said(out.getvalue(), err.getvalue(), code)

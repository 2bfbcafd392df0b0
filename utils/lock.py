"""One run to a folder: a lock that lives and dies with its process."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
from datetime import datetime
from pathlib import Path

from utils.errors import UserError

logger = logging.getLogger(__name__)

_held: dict[Path, int] = {}  # folder -> descriptor, of this process


def hold(folder: Path) -> bool:
    """Make `folder` and hold it until `release` or the end of this process; False where this process held it already.

    Raises:
        UserError: another process holds it, or it can not be made or written.
    """
    key = folder.resolve()
    if key in _held:
        return False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise UserError(f"exp_dir: can not write to {folder}: {error.strerror or error}") from None
    try:
        # Not flock: data workers would inherit it, and hold it for seconds after their trainer was killed.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        holder = os.read(descriptor, 4096).decode(errors="replace")
        os.close(descriptor)
        raise UserError(
            f"exp_dir: {folder} is in use by {_describe(holder)}: wait for it, stop it, or choose another folder"
        ) from None
    except OSError as error:  # some network file systems know no locks
        logger.warning("exp_dir: %s can not be locked (%s): see yourself that no other run uses it", folder, error)
        os.close(descriptor)
        return False
    since = datetime.now().astimezone().isoformat(timespec="seconds")
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since}).encode(), 0)
    _held[key] = descriptor
    return True


def release(folder: Path) -> None:
    """Let go of `folder`; the file stays, as removing it could take it from under the next run."""
    descriptor = _held.pop(folder.resolve(), None)
    if descriptor is not None:
        os.ftruncate(descriptor, 0)
        os.close(descriptor)


def _describe(holder: str) -> str:
    try:
        entry = json.loads(holder)
        return f"process {entry['pid']} on {entry['host']} since {entry['since']}"
    except (ValueError, KeyError, TypeError):
        return "another process"

"""Optional libraries, asked for where they are used."""

from __future__ import annotations

import importlib
from types import ModuleType

from utils.errors import UserError


def require(module: str, *, extra: str) -> ModuleType:
    """Import an optional library.

    Args:
        module: its import name.
        extra: the optional dependency of this project that brings it.

    Raises:
        UserError: it is not installed; says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        raise UserError(f"{module} is not installed: pip install -e '.[{extra}]'") from None

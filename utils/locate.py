"""Find the object that a dotted `_target_` names, or say which part of the name is wrong."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType
from typing import Any

from utils.errors import UserError
from utils.names import did_you_mean


def locate(target: str) -> Any:
    """Import what `target` names: a module's attribute, or an attribute of that.

    Raises:
        UserError: there is no such module or name (names the nearest one), or importing it failed.
    """
    parts = target.split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise UserError(f"{target!r}: not a dotted name like package.module.Class")
    module, taken = import_longest(parts)
    found: Any = module
    for part in parts[taken:]:
        try:
            found = getattr(found, part)
        except AttributeError:
            raise UserError(f"{target}: no such name{did_you_mean(part, _names_in(found))}") from None
        except ImportError as error:  # a lazy package imports on access
            raise UserError(f"{target}: can not be imported: {error}") from None
    return found


def import_longest(parts: list[str]) -> tuple[ModuleType, int]:
    """The deepest module on the way, and how many of `parts` it takes."""
    module = _import(parts, 1)
    if module is None:
        near = did_you_mean(parts[0], (found.name for found in pkgutil.iter_modules()))
        raise UserError(f"{'.'.join(parts)}: no module '{parts[0]}'{near}")
    for depth in range(2, len(parts) + 1):
        part = parts[depth - 1]
        is_own_name = part in vars(module) and not isinstance(vars(module)[part], ModuleType)
        deeper = None if is_own_name or not hasattr(module, "__path__") else _import(parts, depth)
        if deeper is None:
            return module, depth - 1
        module = deeper
    return module, len(parts)


def _import(parts: list[str], depth: int) -> ModuleType | None:
    """The module of the first `depth` parts; None where there is none of that name."""
    name = ".".join(parts[:depth])
    try:
        return importlib.import_module(name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == name:
            return None
        raise UserError(f"{'.'.join(parts)}: can not be imported: {type(error).__name__}: {error}") from error


def _names_in(owner: Any) -> list[str]:
    """Public names of a module or class, the submodules of a package included."""
    submodules = [found.name for found in pkgutil.iter_modules(getattr(owner, "__path__", []))]
    return [name for name in {*dir(owner), *submodules} if not name.startswith("_")]

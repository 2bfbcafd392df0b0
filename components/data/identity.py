"""What a stored array was made from, as short keys: the audio, and everything that computes something out of it."""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from utils.errors import UserError

# What every module has: no settings, or described by itself (buffers, parameters, children, hooks).
_OF_EVERY_MODULE = set(vars(nn.Module())) - {"training"}
_PLAIN = (str, int, float, bool, type(None), bytes, range, slice, torch.dtype, torch.device, np.dtype, np.generic)
_LIBRARIES = {"site-packages", "dist-packages"}


def content_key(
    path: str | Path,
    *,
    offset: float = 0.0,
    duration: float | None = None,
    channel: int | None = None,
    byte_offset: int | None = None,
    num_bytes: int | None = None,
    member: str | None = None,
) -> str:
    """Identify a piece of audio without reading it, as 64 hexadecimal digits.

    The file counts as the same as long as its absolute path, size, and times of modification and of change stay: a
    `stat` instead of the reading that a cache is there to save. The time of change is set by the kernel alone, so that
    files exchanged for others of the same size and date are noticed; a mere `chmod` or a copied corpus is read again.

    Args:
        offset, duration: seconds; a segment of the file.
        channel: which channel is taken; None for the mean of all.
        byte_offset, num_bytes, member: where in a container the audio lies.

    Raises:
        UserError: there is no such file.
    """
    try:
        stat = os.stat(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    place = [offset, duration, channel, byte_offset, num_bytes, member]
    return _digest([os.path.abspath(path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, *place])


def settings_key(computes: Any) -> str:
    """Identify what computes arrays, so that a changed setting never meets arrays of the one before.

    The key covers the class or function by name, every attribute (constructor arguments end up there), buffers and
    parameters bit by bit, parts and hooks likewise, the source files of ours that it can reach by its imports, and the
    versions of the libraries these use. Take it before the first use: some objects keep notes about their work.

    Args:
        computes: a frontend (`nn.Module`), a callable object, a function of a module, a `functools.partial` or a bound
            method of these; or plain values, lists and dicts of all these (`[sample_rate, frontend]`).

    Raises:
        UserError: it holds what can not be told apart by name and value, as a lambda, a function inside of another, or
            an open file.
    """
    return _digest(_describe(computes, type(computes).__name__, ()))


def _digest(description: Any) -> str:
    return hashlib.sha256(json.dumps(description).encode()).hexdigest()


def _describe(value: Any, where: str, inside: tuple[int, ...]) -> Any:
    """`value` as JSON; `where` is its place for the person, `inside` the ids of what holds it."""
    if isinstance(value, Enum):
        return [_name(type(value)), value.name]
    if isinstance(value, _PLAIN):
        return [type(value).__name__, repr(value)]
    if isinstance(value, Path):
        return ["Path", str(value)]
    if isinstance(value, (Tensor, np.ndarray)):
        return _describe_array(value)
    if id(value) in inside:
        return ["loop", len(inside) - inside.index(id(value))]
    inside = (*inside, id(value))
    if isinstance(value, Mapping):
        entries = [[repr(key), _describe(item, f"{where}[{key!r}]", inside)] for key, item in value.items()]
        return [type(value).__name__, entries]  # in order: that of steps matters
    if isinstance(value, (list, tuple)):
        return [type(value).__name__, [_describe(item, f"{where}[{i}]", inside) for i, item in enumerate(value)]]
    if isinstance(value, (set, frozenset)):
        return ["set", sorted(json.dumps(_describe(item, where, inside)) for item in value)]
    return _describe_code(value, where, inside)


def _describe_array(value: Tensor | np.ndarray) -> list[Any]:
    if isinstance(value, Tensor) and value.is_meta:  # without data, such as what old weight norms compute when called
        return ["meta", str(value.dtype), list(value.shape)]
    if isinstance(value, Tensor):
        kind, shape = str(value.dtype), list(value.shape)
        data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    else:
        if value.dtype.hasobject:
            raise UserError("settings_key: an array of Python objects can not be told from another by its values")
        kind, shape, data = str(value.dtype), list(value.shape), np.ascontiguousarray(value).reshape(-1).view(np.uint8)
    return ["array", kind, shape, hashlib.sha256(data).hexdigest()]


def _describe_code(value: Any, where: str, inside: tuple[int, ...]) -> list[Any]:
    if isinstance(value, functools.partial):
        parts = [value.func, list(value.args), dict(value.keywords)]
        return ["partial", _describe(parts, f"{where}.func", inside)]
    if isinstance(value, (MethodType, BuiltinFunctionType)) and not isinstance(value.__self__, (ModuleType, type)):
        return ["method", value.__name__, _describe(value.__self__, f"{where}.__self__", inside)]
    if isinstance(value, np.ufunc):
        return ["ufunc", value.__name__, np.__version__]
    if isinstance(value, (FunctionType, MethodType, BuiltinFunctionType, type)):
        return [_name(value, where), _sources(value)]
    if isinstance(value, nn.Module):
        return _describe_module(value, where, inside)
    return _describe_object(value, where, inside)


def _describe_object(value: Any, where: str, inside: tuple[int, ...]) -> list[Any]:
    """By what pickle would write of it: the one account of an object's state that also those made in C give."""
    try:
        reduced = value.__reduce_ex__(2)
    except Exception:
        raise UserError(
            f"settings_key: {where} is a {_name(type(value))}, which can not be told from another by its values: "
            "keep it out of what computes features, or make it where it is used"
        ) from None
    if isinstance(reduced, str):  # the name of something global
        return [_name(value, where), _sources(value)]
    make, arguments, state, items, entries = (*reduced, None, None, None)[:5]
    _name(type(value), where)
    parts = [make, list(arguments), list(items or ()), list(entries or ())]
    return [_describe(parts, where, inside), _describe_state(state, where, inside)]


def _describe_state(state: Any, where: str, inside: tuple[int, ...]) -> Any:
    if not isinstance(state, dict):
        return _describe(state, where, inside)
    return [[str(name), _describe(item, f"{where}.{name}", inside)] for name, item in state.items()]


def _describe_module(module: nn.Module, where: str, inside: tuple[int, ...]) -> list[Any]:
    try:
        state = module.__getstate__()  # torch's own leave out what only lives in memory
    except RuntimeError:  # a parametrised one refuses to be pickled
        state = vars(module)
    attributes = [
        [name, _describe(item, f"{where}.{name}", inside)]
        for part in (state, module._buffers, module._parameters, module._modules)
        for name, item in part.items()
        if part is not state or name not in _OF_EVERY_MODULE
    ]
    # A hook is kept under a number that counts all hooks of the process.
    for name in ("_forward_hooks", "_forward_pre_hooks"):
        attributes.append([name, _describe(list(vars(module)[name].values()), f"{where}.{name}", inside)])
    return [_name(type(module), where), _sources(type(module)), attributes]


def _name(value: Any, where: str = "") -> str:
    name = f"{value.__module__}.{getattr(value, '__qualname__', value.__name__)}"
    if "<lambda>" in name or "<locals>" in name:
        kind = "a lambda" if "<lambda>" in name else "defined inside of a function"
        raise UserError(
            f"settings_key: {where or name} is {kind}, so that a change of it could not be noticed: "
            "define it at the top level of a module"
        )
    return name


@functools.cache
def _sources(code: Any) -> list[list[str]]:
    """What the behaviour of a class or function depends on: our source files by hash, libraries by version."""
    bases = code.__mro__ if isinstance(code, type) else (code,)
    modules = [sys.modules.get(str(base.__module__)) for base in bases]
    found = set()
    for module in _reachable(module for module in modules if module is not None):
        file = getattr(module, "__file__", None)
        if _is_ours(module) and file is not None:
            found.add((module.__name__, _file_digest(file)))
        elif (library := module.__name__.partition(".")[0]) not in sys.stdlib_module_names:
            found.add((library, _version(library)))
    if not found and any(base.__module__ == "__main__" for base in bases):
        raise UserError(f"settings_key: {code.__qualname__} stands in no file: put it into a module")
    return sorted(map(list, found))


def _reachable(modules: Iterable[ModuleType]) -> Iterator[ModuleType]:
    """`modules` and what they import, as far as that is ours; of libraries only the doorstep."""
    queue, seen = list(modules), set()
    while queue:
        module = queue.pop()
        if module.__name__ in seen:
            continue
        seen.add(module.__name__)
        yield module
        if not _is_ours(module):
            continue
        for value in list(vars(module).values()):
            home = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
            if isinstance(home, str) and home not in seen and (other := sys.modules.get(home)) is not None:
                queue.append(other)


def _is_ours(module: ModuleType) -> bool:
    """Whether `module` is of this project or its user's, and not of an installed library or of Python."""
    if module.__name__.partition(".")[0] in sys.stdlib_module_names:
        return module.__name__ == "__main__"
    file = getattr(module, "__file__", None)
    return file is not None and _LIBRARIES.isdisjoint(Path(file).parts)


@functools.cache
def _file_digest(file: str) -> str:
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


@functools.cache
def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return str(getattr(importlib.import_module(library), "__version__", "unknown"))

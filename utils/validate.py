"""Check a whole config before anything is built: every value, `_target_` and argument, all mistakes at once."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import Container, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from utils.compose_errors import one_sentence
from utils.errors import UserError
from utils.locate import locate
from utils.names import did_you_mean, nearest
from utils.value_types import mismatch

# Keys that tell Hydra how to build, and are no arguments.
_DIRECTIVES = ("_target_", "_args_", "_partial_", "_recursive_", "_convert_")
_Kind = inspect.Parameter
_CONVERSIONS = ("none", "partial", "object", "all")


@dataclass(frozen=True)
class Node:
    """A mapping with a `_target_`, at the dotted `path` of a config.

    A value that can not be had is an Ellipsis in `content`.
    `completed_later`: a parent with `_recursive_: false` builds it, and may add arguments.
    """

    path: str
    content: Mapping[str, Any]
    completed_later: bool = False


def validate(config: Container) -> list[str]:
    """All mistakes of `config`, one line each, sorted by config path; empty where there are none. Builds nothing."""
    walk = _Walk(config)
    problems = [problem for node in walk.nodes for problem in _check_node(node)]
    return sorted({*walk.problems, *problems})


def num_targets(config: Container) -> int:
    """How many `_target_` nodes `validate` looks at."""
    return len(_Walk(config).nodes)


def check_or_raise(config: Container) -> None:
    """Validate.

    Raises:
        UserError: with all mistakes, one a line.
    """
    if problems := validate(config):
        raise UserError("\n".join(problems))


# ---------------------------------------------------------------------------------------------------------------- walk


class _Walk:
    """Every value of a config, looked at once; a node that others point to is looked at in its own place."""

    def __init__(self, config: Container) -> None:
        self.problems: list[str] = []
        self.nodes: list[Node] = []
        self._seen: dict[int, Container] = {}  # an id is unique only while its object lives, so that is kept
        self._pointers: list[tuple[Container, str, bool]] = []
        self._visit(config, "", False)
        while self._pointers:
            self._visit(*self._pointers.pop(0))

    def _visit(self, container: Container, path: str, completed_later: bool) -> None:
        if id(container) in self._seen:
            return
        self._seen[id(container)] = container
        values = self._values(container, path)
        if "_target_" in values:
            self.nodes.append(Node(path, values, completed_later))
        completed_later = completed_later or values.get("_recursive_") is False
        for key, value in values.items():
            if isinstance(value, Container):
                here = _join(path, key)
                if OmegaConf.is_interpolation(container, int(key) if isinstance(container, ListConfig) else key):
                    self._pointers.append((value, here, completed_later))
                else:
                    self._visit(value, here, completed_later)

    def _values(self, container: Container, path: str) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key in range(len(container)) if isinstance(container, ListConfig) else list(container):
            here = _join(path, key)
            try:
                missing = OmegaConf.is_missing(container, key)
                values[str(key)] = Ellipsis if missing else container[key]
                if missing:
                    self.problems.append(f"{here}: a value is needed here (???)")
            except OmegaConfBaseException as error:
                values[str(key)] = Ellipsis
                text = one_sentence(error)
                self.problems.append(text if text.startswith(f"{here}:") else f"{here}: {text}")
        return values


def _join(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)


# --------------------------------------------------------------------------------------------------------------- nodes


def _check_node(node: Node) -> Iterator[str]:
    target, here = node.content["_target_"], _join(node.path, "_target_")
    if target is Ellipsis:
        return
    if not isinstance(target, str):
        yield f"{here}: expected a dotted name, got {target!r}"
        return
    try:
        built = locate(target)
    except UserError as error:
        yield f"{here}: {error}"
        return
    if not callable(built):
        yield f"{here}: {target} is not something that can be called"
        return
    convert = node.content.get("_convert_", "none")
    if convert not in _CONVERSIONS:
        yield f"{_join(node.path, '_convert_')}: expected one of {', '.join(_CONVERSIONS)}, got {convert!r}"
    try:
        signature = _signature(built)
    except (ValueError, TypeError):
        return  # builtins need not have a signature
    yield from _check_arguments(node, target, signature)


def _signature(built: Any) -> inspect.Signature:
    try:
        return inspect.signature(built, eval_str=True)
    except NameError:  # an annotation that only a type checker can see
        return inspect.signature(built)


def _check_arguments(node: Node, target: str, signature: inspect.Signature) -> Iterator[str]:
    parameters = signature.parameters
    takes = {parameter.kind for parameter in parameters.values()}
    positional = [
        name for name, p in parameters.items() if p.kind in (_Kind.POSITIONAL_ONLY, _Kind.POSITIONAL_OR_KEYWORD)
    ]
    named = [name for name, p in parameters.items() if p.kind in (_Kind.KEYWORD_ONLY, _Kind.POSITIONAL_OR_KEYWORD)]
    args: Sequence[Any] = node.content.get("_args_") or ()
    given = {name: value for name, value in node.content.items() if name not in _DIRECTIVES}
    filled = {*positional[: len(args)], *given}

    if len(args) > len(positional) and _Kind.VAR_POSITIONAL not in takes:
        yield f"{_join(node.path, '_args_')}: {len(args)} arguments, {target} takes at most {len(positional)}"
    for name, value in given.items():
        here = _join(node.path, name)
        if name in named:
            if name in positional[: len(args)]:
                yield f"{here}: given twice to {target}, in _args_ already"
            elif problem := _mismatch(parameters[name], value):
                yield f"{here}: {problem}"
        elif _Kind.VAR_KEYWORD not in takes:
            open_names = [name for name in named if name not in filled]
            hint = did_you_mean(name, open_names) or did_you_mean(name, named)
            yield f"{here}: unknown argument of {target}{hint}"
            filled.add(nearest(name, open_names) or name)  # that one is not reported as missing too
    if node.content.get("_partial_") or node.completed_later:
        return
    for name in dict.fromkeys((*positional, *named)):
        if parameters[name].default is inspect.Parameter.empty and name not in filled:
            yield f"{_join(node.path, name)}: missing, {target} needs it"


def _mismatch(parameter: inspect.Parameter, value: Any) -> str | None:
    if value is Ellipsis or (value is None and parameter.default is None):
        return None
    return mismatch(parameter.annotation, value)

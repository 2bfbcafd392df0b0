"""Build from a config that came with a checkpoint or from elsewhere: data, which names only what is on a list.

The list is the caller's; the artifact can not widen it. Modelled on the `_target_whitelist_` of Hydra 1.4.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from types import ModuleType
from typing import Any

from hydra.utils import instantiate
from omegaconf import Container, OmegaConf

from utils.errors import UserError
from utils.locate import import_longest

DEFAULT_ALLOWED = (
    "components.*",
    "tasks.*",
    "torch.nn.*",
    "torch.optim.*",
    "torch.utils.data.DataLoader",
    "transformers.*",
    "diffusers.*",
    "audiomentations.*",
)

# Arguments by which an allowed library would run code that it downloads.
_CODE_ARGUMENTS = ("trust_remote_code", "custom_pipeline", "_target_whitelist_")


def instantiate_untrusted(config: Container, allowed: Sequence[str] = DEFAULT_ALLOWED) -> Any:
    """Instantiate `config` after every `_target_` in it was found on the list; nothing is imported before that.

    Args:
        config: a config node; interpolations are resolved first.
        allowed: dotted names, a trailing `*` for all below. The object itself must be defined there too.

    Raises:
        UserError: a target is not allowed, an argument would let a library run foreign code, or an interpolation is
            left after resolving; names the config path.
    """
    content = OmegaConf.to_container(config, resolve=True)
    check_targets(content, allowed)
    return instantiate(OmegaConf.create(content), _convert_="all")


def check_targets(content: Any, allowed: Sequence[str] = DEFAULT_ALLOWED) -> None:
    """Refuse plain `content` with a target that `instantiate_untrusted` would refuse. Raises as that."""
    targets = list(_targets(content, ""))
    for path, target in targets:
        if not isinstance(target, str) or not _is_allowed(target, allowed):
            raise UserError(f"{path}: {target!r} is not among what a stored config may build ({', '.join(allowed)})")
    for path, target in targets:
        if problem := _foreign(target, allowed):
            raise UserError(f"{path}: {target!r} {problem}")


def _targets(content: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(content, str) and "${" in content:
        # An escaped interpolation: resolved once more, it could make a target that was never looked at.
        raise UserError(f"{path}: an interpolation is left in a stored config: {content!r}")
    if isinstance(content, list):
        for index, value in enumerate(content):
            yield from _targets(value, _join(path, index))
    elif isinstance(content, dict):
        for key, value in content.items():
            here = _join(path, key)
            if key == "_target_":
                yield here, value
            elif key in _CODE_ARGUMENTS and value:
                raise UserError(f"{here}: not accepted from a stored config, it would run code from elsewhere")
            yield from _targets(value, here)


def _join(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)


def _is_allowed(target: str, allowed: Sequence[str]) -> bool:
    parts = target.split(".")
    plain = all(part.isidentifier() and not part.startswith("_") and "dynamic_module" not in part for part in parts)
    return plain and any(fnmatchcase(target, pattern) for pattern in allowed)


def _foreign(target: str, allowed: Sequence[str]) -> str | None:
    """Why the object behind an allowed name is not to be called: names can lead through modules into other packages."""
    parts = target.split(".")
    found: Any
    found, taken = import_longest(parts)
    for part in parts[taken:]:
        found = getattr(found, part, None)
        if found is None:
            return f"does not exist: no name {part!r}"
        if isinstance(found, ModuleType) or not (inspect.isclass(found) or inspect.isroutine(found)):
            return "is not a class or a function of its package"
        if not _is_home(getattr(found, "__module__", None), allowed):
            return f"leads to {getattr(found, '__module__', None)}, outside of what a stored config may build"
    return None if callable(found) else "is a module"


def _is_home(module: str | None, allowed: Sequence[str]) -> bool:
    """Whether a defining module lies in an allowed package; a single allowed name may be defined anywhere beside it."""
    homes = [
        pattern.removesuffix(".*") if pattern.endswith(".*") else pattern.rpartition(".")[0] for pattern in allowed
    ]
    return module is not None and any(module == home or module.startswith(f"{home}.") for home in homes)

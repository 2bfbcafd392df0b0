"""What is wrong with a command line or a config tree, in sentences: which key, which file, what is near."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from utils.compose import COMPOSE_ERRORS, Request, dotted_keys
from utils.names import did_you_mean, nearest

_DETAILS = r"(full_key|object_type|reference_type)\s*[:=]|See https"
_CHOSEN_TWICE = r"Multiple values for ([\w/@.]+)\.|([\w/@.]+) appears more than once in the final defaults list"
_NOISE = r"^\w+ raised while resolving interpolation: "


def explain(error: Exception, request: Request) -> str:
    """One line for each mistake. Composes once more where a key is unknown, so it is for failures only."""
    if isinstance(error, yaml.YAMLError):
        return _explain_yaml(error)
    if isinstance(error, OverrideParseException):
        key, _, value = error.override.partition("=")
        return f"{error.override}: not in Hydra's grammar, quote the value: '{key}=\"{value}\"'"
    problems = _group_problems(request) or _key_problems(request)
    if problems:
        return "\n".join(problems)
    if isinstance(error, MissingConfigException):
        return _explain_missing(error, request)
    if match := re.match(_CHOSEN_TWICE, str(error)):
        twice = (match[1] or match[2]) + "/"
        for override in _parse(request):
            if override.is_add() and twice.startswith(f"{override.key_or_group}/"):
                line = str(override.input_line).lstrip("+")
                return f"+{override.key_or_group}: an option of this group is chosen already; change it with {line}"
    return one_sentence(error)


def lost_pointers(request: Request, config: DictConfig) -> list[str]:
    """Added keys before which a pointer gave way: `+a.b=1` on `a: ${c}` makes `a: {b: 1}`, and Hydra says nothing.

    Composes once more only where a mapping consists of nothing but added keys.
    """
    if not any(item.startswith("+") and "." in item.partition("=")[0] for item in request.overrides):
        return []
    overrides = _parse(request)
    added = {o.key_or_group: o for o in overrides if (o.is_add() or o.is_force_add()) and "." in o.key_or_group}
    suspects = [key for key in added if _is_all_added(config, key.rpartition(".")[0], added)]
    if not suspects:
        return []
    lines = [o.input_line for o in overrides if o.key_or_group not in suspects]
    base = request.with_overrides([line for line in lines if line]).compose()
    return [_through_pointer(f"+{key}", key, found) for key in suspects if (found := _pointer_above(key, base))]


def _is_all_added(config: DictConfig, path: str, added: Iterable[str]) -> bool:
    node = OmegaConf.select(config, path)
    return isinstance(node, DictConfig) and all(
        any(f"{key}.".startswith(f"{path}.{name!s}.") for key in added) for name in node
    )


def one_sentence(error: Exception) -> str:
    """The words of a Hydra or OmegaConf error without its search paths, its types, its links and its line breaks."""
    causes = [error]
    if isinstance(error.__cause__, (HydraException, OmegaConfBaseException)):
        causes.append(error.__cause__)
    lines = [line.strip() for cause in causes for line in str(cause).split("Config search path:")[0].splitlines()]
    full_key = next((line.partition(":")[2].strip() for line in lines if line.startswith("full_key:")), "")
    kept = [re.sub(_NOISE, "", line).rstrip(".;") for line in lines if not re.match(_DETAILS, line)]
    text = "; ".join(dict.fromkeys(filter(None, kept))) or type(error).__name__
    return f"{full_key}: {text}" if full_key else text


def _explain_yaml(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    what = getattr(error, "problem", None) or str(error)
    where = f"{mark.name}, line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    return f"{where}not valid YAML: {what}"


def _explain_missing(error: MissingConfigException, request: Request) -> str:
    """A file that a defaults list names, or the entry itself."""
    missing = str(error.missing_cfg_file or "").removesuffix(".yaml")
    if missing == request.name.removesuffix(".yaml"):
        return f"--config-name: no {missing}.yaml in {request.directory}{did_you_mean(missing, _options(request, ''))}"
    parent = re.match(r"In '([^']+)'", str(error))
    group, _, option = missing.rpartition("/")
    where = f"{parent[1]}.yaml: " if parent else ""
    return f"{where}{group}: {_no_such_option(option, _options(request, group))}"


def _no_such_option(option: str, options: list[str]) -> str:
    return f"no option '{option}'{did_you_mean(option, options)}; there is {', '.join(options) or 'none'}"


# -------------------------------------------------------------------------------------------------------------- groups


def _groups(request: Request) -> list[str]:
    folders = [(root, path) for root in request.search_path for path in root.rglob("*") if path.is_dir()]
    return sorted({path.relative_to(root).as_posix() for root, path in folders})


def _options(request: Request, group: str) -> list[str]:
    """The options of a group, nested ones with their folder; of the top level only the entries."""
    found: set[str] = set()
    for root in request.search_path:
        pattern = "**/*.yaml" if group else "*.yaml"
        found |= {_option_name(path, root / group) for path in (root / group).glob(pattern)}
    return sorted(found)


def _option_name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


def _parse(request: Request) -> list[Override]:
    return OverridesParser.create().parse_overrides(list(request.overrides))


def _is_group(override: Override, request: Request) -> bool:
    key = override.key_or_group
    return key.startswith("hydra/") or any((root / key).is_dir() for root in request.search_path)


def _group_problems(request: Request) -> list[str]:
    """Overrides that choose an option which is not there, or look like a group and are none."""
    problems = []
    for override in _parse(request):
        group, value = override.key_or_group, override.value()
        if group.startswith("hydra"):
            continue
        if "/" in group and not _is_group(override, request):
            problems.append(f"{group}: no such group{did_you_mean(group, _groups(request))}")
        elif _is_group(override, request) and isinstance(value, str):
            options = _options(request, group)
            if value.removesuffix(".yaml") not in options:
                problems.append(f"{group}: {_no_such_option(value, options)}")
    return problems


# ---------------------------------------------------------------------------------------------------------------- keys


def _key_problems(request: Request) -> list[str]:
    """Value overrides that do not fit the config which the groups alone would make."""
    overrides = _parse(request)
    groups = [override.input_line for override in overrides if _is_group(override, request)]
    try:
        config = request.with_overrides([line for line in groups if line]).compose()
    except COMPOSE_ERRORS:
        return []
    known = [*dotted_keys(config), *request.more_keys]
    problems = []
    for override in overrides:
        key = override.key_or_group
        if _is_group(override, request):
            continue
        if override.is_add():
            if key in known:
                line = str(override.input_line).lstrip("+")
                problems.append(f"+{key}: the key exists already; change it with {line}")
            known.append(key)
        elif override.is_force_add():
            known.append(key)
        elif key not in known:
            problems.append(_unknown_key(override, config, known, request))
    return problems


def _unknown_key(override: Override, config: DictConfig, known: list[str], request: Request) -> str:
    key = override.key_or_group
    if override.is_delete():
        return f"~{key}: no such key, nothing to remove{did_you_mean(key, known)}"
    new_key = f"a new key is added with +{override.input_line}"
    if pointer := _pointer_above(key, config):
        return _through_pointer(key, key, pointer)
    meant = _nearest_key(key, known) or nearest(key, _groups(request))
    hint = f"did you mean '{meant}'? ({new_key})" if meant else new_key
    return f"{key}: no such key; {hint}"


def _through_pointer(typed: str, key: str, pointer: tuple[str, str]) -> str:
    path, target = pointer
    return f"{typed}: '{path}' only points to '{target}'; override '{target}{key[len(path) :]}' instead"


def _nearest_key(key: str, known: list[str]) -> str | None:
    """A sibling of nearly this name, else any key of nearly this path, else the same name elsewhere."""
    known = [name for name in known if not name.startswith("hydra")]
    parent, _, name = key.rpartition(".")
    siblings = {path.rpartition(".")[2]: path for path in known if path.rpartition(".")[0] == parent}
    if (sibling := nearest(name, siblings)) is not None:
        return siblings[sibling]
    namesakes = [path for path in known if path.rpartition(".")[2] == name]
    return nearest(key, known) or (min(namesakes, key=len) if namesakes else None)


def _pointer_above(key: str, config: DictConfig) -> tuple[str, str] | None:
    """(path, target) of the interpolated node that `key` would have to go through."""
    parts = key.split(".")
    content = OmegaConf.to_container(config, resolve=False)
    for depth, part in enumerate(parts):
        if not isinstance(content, dict) or part not in content:
            return None
        content = content[part]
        if isinstance(content, str) and (match := re.fullmatch(r"\$\{([\w.]+)\}", content)):
            target = match[1]
            return None if target.startswith(".") else (".".join(parts[: depth + 1]), target)
    return None

"""The way in from the prompt: overrides and YAML in, a checked call of `main` out; and our OmegaConf resolvers."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import hydra
from hydra.errors import InstantiationException
from omegaconf import Container, DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, InterpolationResolutionError, MissingMandatoryValue

from utils.compose import COMPOSE_ERRORS, Request, compose_task, declare, entry_keys, register_search_path
from utils.compose_errors import explain, lost_pointers, one_sentence
from utils.errors import UserError
from utils.launch import use_cores_considerately
from utils.logging import is_main_process, rank, set_up_logging

Body = Callable[[DictConfig], None]

# We make our own folders and log by ourselves; what the prompt says comes later and wins.
_QUIET = ("hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=none", "hydra/hydra_logging=none")

# What resolving a value can bring to light, a mistake in the YAML each time.
_VALUE_ERRORS = (InterpolationKeyError, InterpolationResolutionError, MissingMandatoryValue)

# ----------------------------------------------------------------------------------------------------------- resolvers


def register_omegaconf_resolvers() -> None:
    """Make `${len:}`, `${add:}`, `${multiply:}`, `${divide:}`, `${class_counts:}`, `${sub_folders:}`, `${corpus_dir:}`.

    Resolvers of others stay.
    """
    resolvers: dict[str, Callable[..., Any]] = {
        "len": len,
        "add": lambda *numbers: sum(numbers),
        "multiply": lambda *numbers: prod(numbers),
        "divide": lambda dividend, divisor: dividend / divisor,
        # Plain dicts and lists cannot be resolved in place.
        "class_counts": lambda classes: DictConfig(class_counts(classes)),
        "sub_folders": lambda folder: ListConfig(sub_folders(folder)),
        "corpus_dir": corpus_dir,
    }
    for name, resolver in resolvers.items():
        OmegaConf.register_new_resolver(name, resolver, replace=True)


def class_counts(classes: Mapping[str, Sequence[Any]]) -> dict[str, int]:
    """How many classes each label has: `{word: [no, yes], speaker: [a, b, c]}` -> `{word: 2, speaker: 3}`."""
    return {name: len(members) for name, members in classes.items()}


def sub_folders(folder: str | None) -> list[str]:
    """Names of the folders in a folder, in order: the classes of recordings that are sorted so.

    Raises:
        UserError: it is not given, not a folder, or has no folders.
    """
    if folder is None:
        raise UserError("sub_folders: name a folder that holds a folder for each class, data_root=FOLDER")
    path = Path(folder).expanduser()
    names = sorted(p.name for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")) if path.is_dir() else []
    if not names:
        raise UserError(f"sub_folders: {folder} holds no folders, which would be its classes")
    return names


def corpus_dir(name: str, *keys: Any, _root_: DictConfig) -> str:
    """The absolute folder of a made corpus, `<cache_dir>/<name>-<digest of keys>`: other settings, another folder.

    Raises:
        UserError: the config has no `cache_dir`.
    """
    cache_dir = _root_.get("cache_dir")
    if cache_dir is None:
        raise UserError("corpus_dir: cache_dir is not set")
    plain = [OmegaConf.to_container(key, resolve=True) if isinstance(key, Container) else key for key in keys]
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()[:8]
    return str(Path(cache_dir).expanduser().absolute() / f"{name}-{digest}")


# --------------------------------------------------------------------------------------------------------- entry point


def hydra_main(config_path: str, config_name: str) -> Callable[[Body], Callable[[], None]]:
    """`hydra.main` for people: its command line and grammar, and one sentence for whatever they can mend.

    A plain run composes once (`hydra.main` does it twice) and calls the body; Hydra's own flags (`--cfg`, `--multirun`,
    `--help`, ...) go to `hydra.main`. A relative `--config-path` is relative to the current folder. The keys that every
    run has come from the entry config where a config of one's own leaves them out.
    """

    def decorate(body: Body) -> Callable[[], None]:
        home = (Path(inspect.getfile(body)).resolve().parent / config_path).resolve()

        @functools.wraps(body)
        def main() -> None:
            use_cores_considerately()
            register_omegaconf_resolvers()
            set_up_logging()
            try:
                request, flags = _read_arguments(sys.argv[1:], home, config_name)
                entry = None
                if request.directory != home:
                    entry = entry_keys(home, config_name)
                    request = declare(request, entry)
                run = functools.partial(_call, body, entry)
                if flags:
                    _run_hydra(run, request, flags)
                else:
                    run(_compose(request))
            except UserError as error:
                _leave(error)

        return main

    return decorate


def _call(body: Body, entry: DictConfig | None, config: DictConfig) -> None:
    if entry is not None:
        config = OmegaConf.merge(entry, config)  # type: ignore[assignment]
        OmegaConf.set_struct(config, True)
    try:
        body(config)
    except (UserError, InstantiationException, *_VALUE_ERRORS) as error:
        if (told := _told_to_user(error)) is None:
            raise
        _leave(told)  # here, not in main(): Hydra would print a traceback of what passes through it


def _told_to_user(error: Exception) -> UserError | None:
    """The part of `error` that is for the user: Hydra wraps what a constructor raises and adds the config key."""
    if isinstance(error, UserError):
        # A loader's worker process sends its whole traceback as the text.
        return UserError(str(error).rpartition("UserError: ")[2].strip())
    if isinstance(error, _VALUE_ERRORS):
        return UserError(one_sentence(error))
    cause = error.__cause__
    told = _told_to_user(cause) if isinstance(cause, Exception) else None
    if told is None and isinstance(cause, (ValueError, AssertionError)) and _is_of_a_library(cause):
        told = UserError(" ".join(str(cause).split()) or type(cause).__name__)
    full_key = str(error).rpartition("full_key: ")[2] if "full_key: " in str(error) else ""
    return UserError(f"{full_key}: {told}") if told and full_key else told


def _is_of_a_library(error: BaseException) -> bool:
    """Whether an installed library raised it: what its constructors refuse is a matter of the config."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    parts = () if last is None else Path(last.tb_frame.f_code.co_filename).parts
    return "site-packages" in parts or "dist-packages" in parts


def _compose(request: Request) -> DictConfig:
    try:
        config = compose_task(request)
    except COMPOSE_ERRORS as error:
        raise UserError(explain(error, request)) from None
    if problems := lost_pointers(request, config):
        raise UserError("\n".join(problems))
    return config


def _run_hydra(run: Body, request: Request, flags: Sequence[str]) -> None:
    overrides = [flag for flag in flags if flag.startswith("~") or ("=" in flag and not flag.startswith("-"))]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come through as they are, to be explained here
    register_search_path()
    rest = [flag for flag in flags if flag not in overrides]
    sys.argv = [sys.argv[0], *request.overrides, *overrides, *rest]  # argparse wants overrides in one piece
    try:
        hydra.main(version_base="1.3", config_path=str(request.directory), config_name=request.name)(run)()
    except COMPOSE_ERRORS as error:
        raise UserError(explain(error, request.with_overrides((*request.overrides, *overrides)))) from None


def _read_arguments(arguments: Sequence[str], home: Path, name: str) -> tuple[Request, list[str]]:
    """Take `--config-path` and `--config-name` out; the rest is overrides and, behind the first one, Hydra's flags.

    Raises:
        UserError: the folder is not there.
    """
    directory, rest, queue = home, [], list(arguments)
    while queue:
        flag, _, value = (argument := queue.pop(0)).partition("=")
        if flag in ("--config-path", "-cp", "--config-name", "-cn"):
            value = value or (queue.pop(0) if queue else "")
            if flag in ("--config-path", "-cp"):
                directory = Path(value).expanduser().resolve()
            else:
                name = value.removesuffix(".yaml")
        else:
            rest.append(argument)
    if not directory.is_dir():
        raise UserError(f"--config-path: there is no folder {directory}")
    if any(argument.startswith("-") for argument in rest):
        return Request(directory, name, _QUIET), rest
    return Request(directory, name, (*_QUIET, *rest)), []


def _leave(error: UserError) -> None:
    """Exit with 2 and the sentence, once: the main process stops the others before they come to say the same."""
    if not is_main_process():
        time.sleep(2)
    who = "" if is_main_process() else f"[rank {rank()}] "
    print(f"error: {who}{error}", file=sys.stderr, flush=True)
    raise SystemExit(2) from None

"""Where a run lies, and what is written there before its first step."""

from __future__ import annotations

import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from utils.errors import UserError
from utils.io import replacing, write_json, write_text
from utils.launch import process_state
from utils.lock import hold

# Packages whose version can change a result.
_PACKAGES = (
    "torch",
    "torchaudio",
    "accelerate",
    "hydra-core",
    "omegaconf",
    "safetensors",
    "numpy",
    "soundfile",
    "soxr",
    "transformers",
    "diffusers",
    "lhotse",
    "audiomentations",
    "sentencepiece",
    "rapidfuzz",
)

# What a run that begins anew must not find of the one before it.
_LEFTOVERS = ("checkpoints", "metrics.jsonl", "tensorboard", "wandb_id.txt", "bad_samples.jsonl", "bad_batches",
              "artefacts")  # fmt: skip


def resolve_exp_dir(config: DictConfig, name: str) -> Path:
    """The run's folder, made; decided by rank 0 and the same on every rank.

    Args:
        config: `exp_dir`, `resume_from_checkpoint`, `auto_resume`, `overwrite`.
        name: of the experiment, for a default `experiments/<name>/<time>`.

    Raises:
        UserError: the folder can not be made or written, or holds another run; on every rank alike.
    """
    from accelerate.utils import broadcast_object_list

    state = process_state()
    decided: list[str | None] = [None, None]
    if state.is_main_process:
        try:
            exp_dir = choose_exp_dir(config, name, datetime.now())
            prepare_exp_dir(exp_dir, config)
            decided[0] = str(exp_dir)
        except UserError as error:
            decided[1] = str(error)
    if state.num_processes > 1:
        broadcast_object_list(decided)
    if decided[0] is None:
        raise UserError(decided[1])
    return Path(decided[0])


def choose_exp_dir(config: DictConfig, name: str, now: datetime) -> Path:
    """`exp_dir` as given, or `experiments/<name>/<YYYY-mm-dd_HH-MM-SS>`; absolute.

    Raises:
        UserError: `auto_resume` without a folder to go on in.
    """
    if config.exp_dir is not None:
        return Path(config.exp_dir).expanduser().absolute()
    if config.auto_resume:
        raise UserError("auto_resume: name the folder in which to go on with exp_dir=...")
    return (Path("experiments") / name / now.strftime("%Y-%m-%d_%H-%M-%S")).absolute()


def prepare_exp_dir(exp_dir: Path, config: DictConfig) -> None:
    """Make the folder; with `overwrite`, clear it of the run it holds.

    Raises:
        UserError: it can not be made or written, or holds a run that is neither to be resumed nor to be overwritten.
    """
    occupied = any(exp_dir.glob("checkpoints/step_*"))
    goes_on = config.auto_resume or config.resume_from_checkpoint is not None
    if occupied and not goes_on and not config.overwrite:
        raise UserError(
            f"exp_dir: {exp_dir} holds a run already; go on with it (auto_resume=true), "
            "choose another folder (exp_dir=...), or begin anew in it (overwrite=true)"
        )
    hold(exp_dir)
    try:
        probe = exp_dir / ".writable"
        probe.touch()
        probe.unlink()
        if config.overwrite and not goes_on:
            for leftover in _LEFTOVERS:
                _remove(exp_dir / leftover)
    except OSError as error:
        raise UserError(f"exp_dir: can not write to {exp_dir}: {error.strerror or error}") from None


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def save_run(config: DictConfig, exp_dir: Path, overrides: Sequence[str], fingerprints: Mapping[str, Any]) -> None:
    """Write `config.yaml` (resolved), `overrides.txt`, `environment.json` and copies of the run's artefacts; on rank 0,
    before the first step."""
    if not process_state().is_main_process:
        return
    keep_artefacts(config, exp_dir)
    write_text(exp_dir / "config.yaml", OmegaConf.to_yaml(config, resolve=True))
    write_text(exp_dir / "overrides.txt", "".join(f"{override}\n" for override in overrides))
    write_json(exp_dir / "environment.json", environment() | {"data": dict(fingerprints)})


def keep_artefacts(config: DictConfig, exp_dir: Path) -> None:
    """Copy the files of `artefacts` (name -> path, nulls left out) into the run: what it can not be used without.

    Raises:
        UserError: there is no such file.
    """
    for name, path in (config.get("artefacts") or {}).items():
        if path is None:
            continue
        copy = artefact(exp_dir, str(name), path)
        copy.parent.mkdir(parents=True, exist_ok=True)
        try:
            with replacing(copy) as temporary:
                shutil.copyfile(Path(path).expanduser(), temporary)
        except OSError as error:
            raise UserError(f"artefacts.{name}: can not copy {path}: {error.strerror or error}") from None


def artefact(exp_dir: Path, name: str, path: str) -> Path:
    """Where a run keeps its copy of a file."""
    return exp_dir / "artefacts" / f"{name}{Path(path).suffix}"


def environment() -> dict[str, Any]:
    """What else could change a result: versions, the commit, the command. Never fails."""
    return {
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "time": datetime.now().astimezone().isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
        "git": git_state(Path(__file__).resolve().parent),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def git_state(folder: Path) -> dict[str, Any] | None:
    """The commit and whether files differ from it; None outside of a repository or without git."""
    commit, changes = (_git(folder, *words) for words in (("rev-parse", "HEAD"), ("status", "--porcelain")))
    return None if commit is None or changes is None else {"commit": commit, "dirty": bool(changes)}


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def fingerprints(loaders: Mapping[str, Any]) -> dict[str, Any]:
    """For every loader, also the named ones of a mapping, its dataset's `fingerprint()` where it offers one."""
    found: dict[str, Any] = {}
    for name, loader in loaders.items():
        if isinstance(loader, Mapping):
            found |= fingerprints({f"{name}.{inner}": value for inner, value in loader.items()})
        elif (fingerprint := getattr(getattr(loader, "dataset", None), "fingerprint", None)) is not None:
            found[name] = fingerprint()
    return found

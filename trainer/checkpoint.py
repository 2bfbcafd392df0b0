"""Checkpoints as folders: written whole or not at all, listed by number, verified by hash, loaded without running code.

checkpoints/
  step_00001000/
    model.safetensors     the weights; `ema.safetensors` beside them where an average is kept
    training.pt           counters, optimizers, schedules, callbacks (plain types and tensors, `weights_only`)
    rank_0.pt ...         what each process has for itself: generators, meters
    manifest.json         size and sha256 of every file; a folder without a valid one is no checkpoint
  best -> step_00000900
  last -> step_00001000
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from utils.errors import UserError

logger = logging.getLogger(__name__)

FORMAT = 1
_STEP_FOLDER = re.compile(r"step_(\d+)$")
_SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*$")


@dataclass
class Checkpoint:
    """Everything a run needs to go on, in memory.

    Attributes:
        global_step: updates done.
        weights: file stem -> tensors; "model" always, "ema" and others by callbacks.
        training: what all ranks share.
        rank: what this rank alone has.
    """

    global_step: int
    weights: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    rank: dict[str, Any] = field(default_factory=dict)


# ------------------------------------------------------------------------------------------------------------- writing


def save(checkpoint: Checkpoint, directory: Path, *, rank: int = 0, barrier: Callable[[], None] = lambda: None) -> Path:
    """Write `checkpoint` under `directory` and return its folder. Collective; an older one of that step gives way.

    A kill at any moment leaves either no folder of that name or a whole one.
    """
    final = directory / f"step_{checkpoint.global_step:08d}"
    partial = directory / f".{final.name}.partial"
    if rank == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    barrier()
    torch.save(checkpoint.rank, partial / f"rank_{rank}.pt")
    barrier()
    if rank == 0:
        for stem, tensors in checkpoint.weights.items():
            save_weights(tensors, partial / f"{stem}.safetensors")
        torch.save(checkpoint.training, partial / "training.pt")
        _write_manifest(partial, checkpoint.global_step)
        _move_into_place(partial, final)
    barrier()
    return final


def save_weights(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors as safetensors; tied ones once, their other names in the header."""
    kept: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first_names: dict[tuple[Any, ...], str] = {}
    for name, tensor in tensors.items():
        identity = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride()) if tensor.numel() else (name,)
        first = first_names.setdefault(identity, name)
        if first == name:
            kept[name] = tensor.detach().contiguous()
        else:
            aliases[name] = first
    save_file(kept, path, metadata={"format": "pt", "aliases": json.dumps(aliases)})


def _write_manifest(folder: Path, global_step: int) -> None:
    files = {}
    for path in sorted(folder.iterdir()):
        files[path.name] = {"size": path.stat().st_size, "sha256": _sha256(path)}
        _flush(path)
    manifest = folder / "manifest.json"
    manifest.write_text(json.dumps({"format": FORMAT, "global_step": global_step, "files": files}, indent=1))
    _flush(manifest)
    _flush(folder)


def _move_into_place(partial: Path, final: Path) -> None:
    if final.exists():
        shutil.rmtree(replaced := final.with_name(f".{final.name}.replaced"), ignore_errors=True)
        final.rename(replaced)
        partial.rename(final)
        shutil.rmtree(replaced, ignore_errors=True)
    else:
        partial.rename(final)
    _flush(final.parent)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def link(directory: Path, name: str, target: Path) -> None:
    """Point `directory/name` at `target`, atomically."""
    temporary = directory / f".{name}.link"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target.name)
    temporary.replace(directory / name)


def prune(directory: Path, keep: Iterable[int]) -> None:
    """Remove the step folders that no family of checkpoints holds any more."""
    kept = set(keep)
    for step, folder in step_folders(directory):
        if step not in kept:
            shutil.rmtree(folder, ignore_errors=True)


# ------------------------------------------------------------------------------------------------------------- finding


def step_folders(directory: Path) -> list[tuple[int, Path]]:
    """(step, folder), oldest first; by number, so 9 comes before 10. Whole or not."""
    if not directory.is_dir():
        return []
    found = [(int(match[1]), path) for path in directory.iterdir() if (match := _STEP_FOLDER.match(path.name))]
    return sorted(found)


def latest(directory: Path) -> Path | None:
    """The newest whole checkpoint under `directory`; broken ones are named in a warning and passed over."""
    for _, folder in reversed(step_folders(directory)):
        problems = verify(folder, hashes=False)
        if not problems:
            return folder
        logger.warning("ignoring %s: %s", folder, problems[0])
    return None


def verify(folder: Path, *, hashes: bool = True) -> list[str]:
    """What is wrong with a checkpoint folder; empty where it is whole."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        files = {str(name): (int(entry["size"]), str(entry["sha256"])) for name, entry in manifest["files"].items()}
        step = int(manifest["global_step"])
    except FileNotFoundError:
        return ["it has no manifest.json: its save did not finish"]
    except (ValueError, KeyError, TypeError, AttributeError):
        return ["its manifest.json can not be read"]
    if manifest.get("format") != FORMAT:
        return [f"its format is {manifest.get('format')!r}, this version reads {FORMAT}"]
    problems = []
    if (match := _STEP_FOLDER.match(folder.resolve().name)) and int(match[1]) != step:
        problems.append(f"its manifest speaks of step {step}")
    for name, (size, digest) in files.items():
        path = folder / name
        if not _SAFE_NAME.match(name) or path.is_symlink():
            problems.append(f"{name!r} is not a plain file of the folder")
        elif not path.is_file():
            problems.append(f"{name} is missing")
        elif path.stat().st_size != size:
            problems.append(f"{name} has {path.stat().st_size} bytes, {size} were written")
        elif hashes and _sha256(path) != digest:
            problems.append(f"{name} has changed since it was written")
    return problems


def find(checkpoint: str | Path, directory: Path) -> Path:
    """The folder meant by "latest", "last", "best", a step folder's name, or a path.

    Raises:
        UserError: there is no such checkpoint, or it is not whole.
    """
    if str(checkpoint) == "latest":
        folder = latest(directory)
        if folder is None:
            raise UserError(f"no checkpoint under {directory}: nothing to resume from")
        return folder
    named = directory / str(checkpoint)
    folder = named if named.is_dir() else Path(checkpoint)
    if not folder.is_dir():
        raise UserError(f"no checkpoint {str(checkpoint)!r}: neither a folder nor a name under {directory}")
    if problems := verify(folder):
        raise UserError(f"checkpoint {folder} is not whole: {'; '.join(problems)}")
    return folder.resolve()


# ------------------------------------------------------------------------------------------------------------- loading


def load(folder: Path, *, rank: int = 0) -> Checkpoint:
    """Read a whole checkpoint. A rank that the saving run did not have gets an empty `rank`.

    Raises:
        UserError: the folder is not a whole checkpoint.
    """
    if problems := verify(folder):
        raise UserError(f"checkpoint {folder} is not whole: {'; '.join(problems)}")
    training = torch.load(folder / "training.pt", weights_only=True, map_location="cpu")
    rank_file = folder / f"rank_{rank}.pt"
    own = torch.load(rank_file, weights_only=True, map_location="cpu") if rank_file.is_file() else {}
    weights = {path.stem: read_weights(path) for path in sorted(folder.glob("*.safetensors"))}
    return Checkpoint(json.loads((folder / "manifest.json").read_text())["global_step"], weights, training, own)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, on the CPU, tied names included.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            aliases = json.loads((file.metadata() or {}).get("aliases", "{}"))
    except (OSError, SafetensorError) as error:
        raise UserError(f"can not read the weights {path}: {error}") from None
    return tensors | {name: tensors[kept] for name, kept in aliases.items()}


def load_weights(model: nn.Module, folder: Path) -> None:
    """Load a checkpoint's weights into `model`: the averaged ones where there are such. Strict.

    Raises:
        UserError: the weights do not fit the model; names what is missing, unexpected or of another shape.
    """
    averaged = folder / "ema.safetensors"
    path = averaged if averaged.is_file() else folder / "model.safetensors"
    load_tensors(model, read_weights(path), str(path))


def load_tensors(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """`load_state_dict`, strict, with an error that a person can act on.

    Raises:
        UserError: names or shapes differ.
    """
    own = model.state_dict()
    problems = [f"{name} is missing" for name in own if name not in tensors]
    problems += [f"{name} is not in the model" for name in tensors if name not in own]
    problems += [
        f"{name} is {list(tensors[name].shape)}, the model's {list(own[name].shape)}"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(f"{source} does not fit the model: {'; '.join(problems[:3])}{more}")
    model.load_state_dict(dict(tensors))


# ------------------------------------------------------------------------------------------------------------- command


def main(arguments: list[str] | None = None) -> int:
    """`python -m trainer.checkpoint verify|list DIR`; exits with 1 where something is broken."""
    parser = argparse.ArgumentParser(prog="python -m trainer.checkpoint", description=main.__doc__)
    parser.add_argument("command", choices=("verify", "list"))
    parser.add_argument("directory", type=Path, help="a checkpoints folder, or one checkpoint")
    options = parser.parse_args(arguments)
    one = options.directory
    folders = [one] if (one / "manifest.json").exists() else [folder for _, folder in step_folders(one)]
    if not folders:
        print(f"no checkpoint under {one}")
        return 1
    broken = 0
    for folder in folders:
        problems = verify(folder, hashes=options.command == "verify")
        broken += bool(problems)
        print(f"{folder}  {'; '.join(problems) or 'ok'}")
    return int(broken > 0)


if __name__ == "__main__":
    sys.exit(main())

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
import errno
import hashlib
import json
import logging
import os
import pickle
import re
import shutil
import sys
from collections.abc import Iterable, Mapping
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
_LARGEST_MANIFEST = 2**20  # bytes
_SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*$")


@dataclass
class Checkpoint:
    """Everything a run needs to go on, in memory.

    Attributes:
        global_step: updates done.
        weights: file stem -> tensors; "model" always, "ema" and others by callbacks.
        training: what all ranks share.
        rank: what this rank alone has.
        frozen: parameters that are left out of the weights -> sha256 of their bytes: the model must hold them already.
    """

    global_step: int
    weights: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    rank: dict[str, Any] = field(default_factory=dict)
    frozen: dict[str, str] = field(default_factory=dict)


# ------------------------------------------------------------------------------------------------------------- writing


def write_shared(checkpoint: Checkpoint, partial: Path) -> None:
    """Write what all ranks share; on one of them."""
    for stem, tensors in checkpoint.weights.items():
        save_weights(tensors, partial / f"{stem}.safetensors", checkpoint.frozen)
    _save_state(checkpoint.training, partial / "training.pt")


def write_rank(own: Mapping[str, Any], partial: Path, rank: int) -> None:
    """Write what one rank has for itself; the file bears its name only when it is whole."""
    unfinished = partial / f".rank_{rank}.unfinished"
    _save_state(own, unfinished)
    unfinished.rename(partial / f"rank_{rank}.pt")


def _save_state(state: Mapping[str, Any], path: Path) -> None:
    try:
        torch.save(state, path)
    except RuntimeError as error:
        if "inline_container" not in str(error):  # where torch notices that a write came out short
            raise
        raise OSError(errno.ENOSPC, f"only a part of {path.name} could be written") from None


def publish(partial: Path, final: Path, global_step: int, **notes: Any) -> None:
    """Flush a written folder, give it its manifest and its name; one that had the name gives way.

    A kill at any moment leaves the old folder or the new one whole, at worst under a name that `clean` mends.
    """
    _write_manifest(partial, global_step, notes)
    _move_into_place(partial, final)


def save_weights(tensors: Mapping[str, Tensor], path: Path, frozen: Mapping[str, str] | None = None) -> None:
    """Write tensors as safetensors; tied ones once, their other names in the header, as those of `frozen` ones."""
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
    header = {"format": "pt", "aliases": json.dumps(aliases)}
    save_file(kept, path, metadata=header | ({"frozen": json.dumps(dict(frozen))} if frozen else {}))


def _write_manifest(folder: Path, global_step: int, notes: Mapping[str, Any]) -> None:
    files = {}
    for path in sorted(folder.iterdir()):
        files[path.name] = {"size": path.stat().st_size, "sha256": _sha256(path)}
        _flush(path)
    manifest = folder / "manifest.json"
    content = {"format": FORMAT, "global_step": global_step, "files": files, **notes}
    manifest.write_text(json.dumps(content, indent=1))
    _flush(manifest)
    _flush(folder)


def _move_into_place(partial: Path, final: Path) -> None:
    if final.exists():
        shutil.rmtree(replaced := final.with_name(f".{final.name}.replaced"), ignore_errors=True)
        final.rename(replaced)
        try:
            partial.rename(final)
        except OSError:
            replaced.rename(final)
            raise
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


def clean(directory: Path) -> None:
    """Remove what a killed save left behind, and give a folder its name back that was being replaced."""
    for replaced in directory.glob(".step_*.replaced"):
        final = replaced.with_name(replaced.stem[1:])
        if not final.exists():
            replaced.rename(final)
            logger.warning("%s is back: a save was killed while replacing it", final)
    for leftover in (*directory.glob(".step_*.partial"), *directory.glob(".step_*.replaced")):
        shutil.rmtree(leftover, ignore_errors=True)
        logger.warning("removed %s: its save was killed", leftover)


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
        manifest = _read_manifest(folder)
        files = {str(name): (int(entry["size"]), str(entry["sha256"])) for name, entry in manifest["files"].items()}
        step = int(manifest["global_step"])
    except FileNotFoundError:
        return ["it has no manifest.json: its save did not finish"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return ["its manifest.json can not be read"]
    if manifest.get("format") != FORMAT:
        return [f"its format is {manifest.get('format')!r}, this version reads {FORMAT}"]
    strange = sorted({path.name for path in folder.iterdir()} - {"manifest.json", *files})
    problems = [f"{name} is not named by its manifest" for name in strange]
    if "model.safetensors" not in files:
        problems.append("it has no model.safetensors")
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


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    if path.is_symlink() or path.stat().st_size > _LARGEST_MANIFEST:
        raise ValueError("not one of ours")
    return json.loads(path.read_text())


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
    training = _read_state(folder / "training.pt")
    own = load_rank(folder, rank)
    weights = {path.stem: read_weights(path) for path in sorted(folder.glob("*.safetensors"))}
    step = int(_read_manifest(folder)["global_step"])
    return Checkpoint(step, weights, training, own, read_frozen(folder / "model.safetensors"))


def load_rank(folder: Path, rank: int) -> dict[str, Any]:
    """What `rank` had for itself in a checkpoint that was found whole; empty for a rank that there was not."""
    file = folder / f"rank_{rank}.pt"
    return _read_state(file) if file.is_file() else {}


def _read_state(path: Path) -> dict[str, Any]:
    """Plain types and tensors out of a file of `torch.save`; anything that would run code is refused by torch."""
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except FileNotFoundError:
        raise UserError(f"{path.parent} holds weights but no {path.name}: there is nothing to resume from") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{path} is not a state that we wrote, and was not loaded: {reason}") from None
    if not isinstance(state, dict):
        raise UserError(f"{path} is not a state that we wrote: it holds a {type(state).__name__}")
    return state


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, on the CPU, tied names included.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            aliases = json.loads((file.metadata() or {}).get("aliases", "{}"))
        return tensors | {name: tensors[kept] for name, kept in aliases.items()}
    except (OSError, SafetensorError, KeyError, ValueError, AttributeError) as error:
        raise UserError(f"can not read the weights {path}: {error}") from None


def read_frozen(path: Path) -> dict[str, str]:
    """The parameters that a safetensors file of ours leaves out, with their sha256.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            frozen = json.loads((file.metadata() or {}).get("frozen", "{}"))
        return {str(name): str(digest) for name, digest in frozen.items()}
    except (OSError, SafetensorError, ValueError, AttributeError) as error:
        raise UserError(f"can not read the weights {path}: {error}") from None


def held_tensors(model: nn.Module, frozen: Mapping[str, str], source: str) -> dict[str, Tensor]:
    """The model's own tensors for the parameters that a checkpoint leaves out.

    Raises:
        UserError: the model lacks one, or holds another than the run had.
    """
    own = model.state_dict() if frozen else {}
    for name, digest in frozen.items():
        if name not in own or tensor_sha256(own[name]) != digest:
            raise UserError(
                f"{source} leaves out the frozen {name}, and the model does not hold what the run had there: "
                "build the model from the same pretrained weights"
            )
    return {name: own[name] for name in frozen}


def tensor_sha256(tensor: Tensor) -> str:
    """sha256 over the bytes of a tensor."""
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(data.numpy().tobytes()).hexdigest()


def weights_file(folder: Path) -> Path:
    """The weights of a checkpoint to be used: the averaged ones where there are such."""
    averaged = folder / "ema.safetensors"
    return averaged if averaged.is_file() else folder / "model.safetensors"


def load_weights(model: nn.Module, folder: Path) -> None:
    """Load a checkpoint's weights into `model`: the averaged ones where there are such. Strict.

    Raises:
        UserError: the weights do not fit the model; names what is missing, unexpected or of another shape.
    """
    path = weights_file(folder)
    tensors = read_weights(path)
    load_tensors(model, tensors | held_tensors(model, read_frozen(path), str(path)), str(path))


def load_tensors(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """`load_state_dict`, strict. Raises as `check_fit`."""
    check_fit(model, tensors, source)
    model.load_state_dict(dict(tensors))


def check_fit(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Whether `tensors` are the model's, with an error that a person can act on.

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

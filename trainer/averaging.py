"""Means of weights over checkpoints, or over the updates between two, as a model checkpoint.

`python -m trainer.averaging --dir exp/checkpoints (--last K | --best K | --steps A:B) --out FOLDER`
`python -m trainer.averaging --between exp/checkpoints/step_A exp/checkpoints/step_B --out FOLDER`
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer import checkpoint as checkpoints
from utils.errors import UserError

SUMS = "running_sum"  # the file of `trainer.callbacks.RunningAverage` in a checkpoint
COUNT = "__num_summed__"  # its tensor that counts


def mean_of(folders: Sequence[Path]) -> dict[str, Tensor]:
    """The mean of `model.safetensors` over checkpoints, summed in float64; integers are those of the last.

    Raises:
        UserError: one is not whole, or has other tensors than the last.
    """
    last = _read(folders[-1], "model")
    sums = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in _floating(last).items()}
    for folder in folders:
        tensors = _read(folder, "model")
        _check_alike(tensors, last, folder)
        for name, total in sums.items():
            total += tensors[name]
    return _put_in(last, {name: total / len(folders) for name, total in sums.items()})


def mean_between(first: Path, second: Path) -> dict[str, Tensor]:
    """The mean of the weights over the updates behind `first` up to `second`, from their running sums.

    What is no sum of weights (integers, frozen parameters) is taken from `second`.

    Raises:
        UserError: one is not whole or kept no sums, or the second is not of the same run and later.
    """
    before, after = _read(first, SUMS), _read(second, SUMS)
    count = int(after.pop(COUNT)) - int(before.pop(COUNT))
    _check_alike(before, after, first)
    if count <= 0:
        raise UserError(f"--between: {second} has summed no update more than {first}: name the older one first")
    return _put_in(_read(second, "model"), {name: (after[name] - before[name]) / count for name in after})


def export(tensors: Mapping[str, Tensor], newest: Path, out: Path, notes: Mapping[str, Any]) -> None:
    """Write a model checkpoint: the weights, a manifest, and the run's `config.yaml` where it is there.

    Args:
        newest: the checkpoint from which all that is no mean comes.
        notes: what the manifest shall say of the origin.

    Raises:
        UserError: there is something at `out` already.
    """
    if out.exists():
        raise UserError(f"--out: {out} is there already; name another folder")
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    frozen = checkpoints.read_frozen(newest / "model.safetensors")
    checkpoints.save_weights(tensors, partial / "model.safetensors", frozen)
    config = newest.resolve().parents[1] / "config.yaml"
    if config.is_file():
        shutil.copyfile(config, partial / "config.yaml")
    checkpoints.publish(partial, out, _step(newest), **notes)


def last(directory: Path, count: int) -> list[Path]:
    """The newest `count` whole checkpoints, oldest first."""
    return _enough([folder for _, folder in _whole(directory)][-count:], count, "--last", directory)


def best(directory: Path, count: int) -> list[Path]:
    """The best `count` by the metric that the run's ModelCheckpoint watches, in the order of their steps."""
    whole = dict(_whole(directory))
    if not whole:
        raise UserError(f"--dir: no checkpoint under {directory}")
    training = torch.load(whole[max(whole)] / "training.pt", weights_only=True, map_location="cpu")
    ranked = [step for state in training["callbacks"].values() for _, step in state.get("best") or () if step in whole]
    return _enough([whole[step] for step in sorted(ranked[:count])], count, "--best", directory)


def between_steps(directory: Path, first: int, final: int) -> list[Path]:
    """All checkpoints of the steps `first` to `final`, both included."""
    found = [folder for step, folder in _whole(directory) if first <= step <= final]
    return _enough(found, 1, f"--steps {first}:{final}", directory)


def _whole(directory: Path) -> list[tuple[int, Path]]:
    return [(step, path) for step, path in checkpoints.step_folders(directory) if not checkpoints.verify(path)]


def _enough(folders: list[Path], count: int, option: str, directory: Path) -> list[Path]:
    if count < 1 or len(folders) < count:
        raise UserError(f"{option}: {directory} has {len(folders)} such checkpoints, {max(count, 1)} are needed")
    return folders


def _read(folder: Path, stem: str) -> dict[str, Tensor]:
    if problems := checkpoints.verify(folder):
        raise UserError(f"checkpoint {folder} is not whole: {'; '.join(problems)}")
    path = folder / f"{stem}.safetensors"
    if stem == SUMS and not path.is_file():
        raise UserError(f"{folder} has no running sums: train with callbacks.running_average")
    return checkpoints.read_weights(path)


def _put_in(newest: dict[str, Tensor], means: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The newest tensors with their means in their places; tied ones stay tied."""
    by_tensor = {id(newest[name]): mean.to(newest[name].dtype) for name, mean in means.items()}
    return {name: by_tensor.get(id(tensor), tensor) for name, tensor in newest.items()}


def _floating(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}


def _check_alike(tensors: Mapping[str, Tensor], others: Mapping[str, Tensor], folder: Path) -> None:
    for name in (*tensors, *others):
        if name not in tensors or name not in others or tensors[name].shape != others[name].shape:
            raise UserError(f"{folder} is of another model than the newest: {name} differs")


def _step(folder: Path) -> int:
    return int(json.loads((folder / "manifest.json").read_text())["global_step"])


def _range(text: str) -> tuple[int, int]:
    first, _, final = text.partition(":")
    return int(first), int(final)


def main(arguments: list[str] | None = None) -> int:
    """Average checkpoints into a model checkpoint; exits with 1 where that can not be done."""
    parser = argparse.ArgumentParser(prog="python -m trainer.averaging", description=main.__doc__)
    parser.add_argument("--dir", type=Path, help="the checkpoints folder of a run")
    parser.add_argument("--out", type=Path, required=True, help="the folder to make")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--last", type=int, metavar="K", help="the newest K")
    which.add_argument("--best", type=int, metavar="K", help="the best K by the metric of callbacks.checkpoint")
    which.add_argument("--steps", type=_range, metavar="A:B", help="those of the steps A to B")
    which.add_argument("--between", type=Path, nargs=2, metavar=("A", "B"), help="all updates behind A up to B")
    options = parser.parse_args(arguments)
    if options.dir is None and options.between is None:
        parser.error("--last, --best and --steps need --dir")
    try:
        print(
            f"{_run(options)} | load it with trainer.checkpoint.load_weights, or inference.py checkpoint={options.out}"
        )
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _run(options: argparse.Namespace) -> str:
    if options.between is not None:
        steps = [_step(folder) for folder in options.between]
        tensors, newest = mean_between(*options.between), options.between[1]
        export(tensors, newest, options.out, {"mean_over_updates": steps})
        return f"mean over the updates behind {steps[0]} up to {steps[1]}"
    folders = _chosen(options)
    steps = [_step(folder) for folder in folders]
    export(mean_of(folders), folders[-1], options.out, {"mean_over_checkpoints": steps})
    return f"mean over the checkpoints of steps {', '.join(map(str, steps))}"


def _chosen(options: argparse.Namespace) -> list[Path]:
    if options.last is not None:
        return last(options.dir, options.last)
    if options.best is not None:
        return best(options.dir, options.best)
    return between_steps(options.dir, *options.steps)


if __name__ == "__main__":
    sys.exit(main())

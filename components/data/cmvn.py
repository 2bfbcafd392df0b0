"""`python -m components.data cmvn`: mean and variance of features over a collection, for `GlobalCmvn`."""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from components.data.arguments import positive
from components.data.dataset import AudioDataset
from components.data.extractor import build_module, load_node
from components.features.statistics import FeatureStatistics, Moments, check_suffix
from utils.errors import UserError

_NORMALISATION = "components.features.GlobalCmvn"
_TOLD = 10  # bad clips that are named one by one


class ClipMoments(Dataset):
    """For each clip its number of samples and the `Moments` of its features, or the sentence that says why not."""

    def __init__(self, clips: Dataset, indices: list[int], frontend: nn.Module) -> None:
        self.clips, self.indices, self.frontend = clips, indices, frontend

    def __len__(self) -> int:
        return len(self.indices)

    @torch.inference_mode()
    def __getitem__(self, position: int) -> tuple[int, Moments] | str:
        try:
            item = self.clips[self.indices[position]]
        except UserError as error:
            return str(error)
        num_samples = item["waveform"].shape[-1]
        features, feature_lens = self.frontend(item["waveform"].unsqueeze(0), torch.tensor([num_samples]))
        moments = Moments.of(features[0, : int(feature_lens)])
        if not bool(moments.squares.isfinite().all()):
            return f"{item['id']}: its features are not finite"
        return num_samples, moments


def compute_statistics(
    clips: Dataset, indices: list[int], frontend: nn.Module, num_processes: int = 1
) -> tuple[Moments, int, list[str]]:
    """Go through the clips once; the same sums in the same order, whatever the number of processes.

    Returns:
        The moments of all true frames, how many samples they were made of, and a sentence for each clip left out.

    Raises:
        UserError: no clip could be used.
    """
    workers = num_processes if num_processes > 1 else 0
    loader = DataLoader(ClipMoments(clips, indices, frontend.eval()), batch_size=None, num_workers=workers)
    total, num_samples, left_out = None, 0, []
    for result in loader:
        if isinstance(result, str):
            left_out.append(result)
            continue
        samples, moments = result
        num_samples += samples
        total = moments if total is None else total.merge(moments)
    if total is None:
        raise UserError(f"none of {len(indices)} clips could be used; the first: {left_out[0]}")
    return total, num_samples, left_out


def main(arguments: list[str]) -> int:
    """The command; returns its exit code."""
    options = _parse(arguments)
    _check_out(check_suffix(options.out))
    node, sample_rate = frontend_node(options.frontend, options.sample_rate, options.settings)
    frontend = build_module("frontend", node)
    clips = AudioDataset(options.manifest, sample_rate)
    indices = evenly_spaced(len(clips), options.max_clips)
    moments, num_samples, left_out = compute_statistics(clips, indices, frontend, options.num_processes)
    num_clips = len(indices) - len(left_out)
    made_of = {
        "frontend": node,
        "sample_rate": sample_rate,
        "manifest": Path(options.manifest).name,
        "num_clips": num_clips,
        "seconds": round(num_samples / sample_rate, 3),
    }
    FeatureStatistics(moments.mean.tolist(), moments.var.tolist(), moments.count, made_of).save(options.out)
    _tell(left_out)
    hours = num_samples / sample_rate / 3600
    print(
        f"{num_clips} clips, {hours:.3g} h, {moments.count} frames of {len(moments.mean)} features, "
        f"{len(left_out)} left out -> {options.out}"
    )
    return 0


def frontend_node(name: str, sample_rate: int | None, settings: Sequence[str] = ()) -> tuple[dict[str, Any], int]:
    """The checked config of a frontend, resolved, and the sample rate it wants, in Hz.

    A `FeaturePipeline` is cut where it normalises by global statistics already, as these are what is looked for.

    Args:
        name, settings: as of `components.data.extractor.load_node`.
        sample_rate: what `${sample_rate}` stands for where the file does not say it.

    Raises:
        UserError: there is none, its config is not valid, or the sample rate is known from nowhere or known twice.
    """
    node, _ = load_node("frontend", name, settings, sample_rate)
    if transforms := node.get("transforms"):
        node["transforms"] = dict(itertools.takewhile(lambda step: not _normalises(step[1]), transforms.items()))
    own = node.get("sample_rate") or node.get("frontend", {}).get("sample_rate") or sample_rate
    if own is None:
        raise UserError(f"--frontend {name}: it says no sample rate: give --sample-rate HZ")
    if sample_rate not in (None, own):
        raise UserError(f"--frontend {name}: its sample rate is {own} Hz, --sample-rate {sample_rate}")
    return node, own


def _check_out(path: Path) -> None:
    """Before hours of computing, not behind them."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"cannot write {path}: its folder is not yours to write to")


def _normalises(transform: Mapping[str, Any] | None) -> bool:
    return transform is not None and transform.get("_target_") == _NORMALISATION


def evenly_spaced(num_clips: int, wanted: int | None) -> list[int]:
    """At most `wanted` indices from the whole range: a manifest is often sorted, and its head is not like the rest."""
    if wanted is None or wanted >= num_clips:
        return list(range(num_clips))
    return [i * num_clips // wanted for i in range(wanted)]


def _tell(left_out: list[str]) -> None:
    for sentence in left_out[:_TOLD]:
        print(f"left out: {sentence}", file=sys.stderr)
    if len(left_out) > _TOLD:
        print(f"left out: {len(left_out) - _TOLD} more", file=sys.stderr)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m components.data cmvn", description=__doc__)
    add = parser.add_argument
    add("manifest", help="the clips; those that can not be read are left out, named and counted")
    add("out", help="a .json or .safetensors file")
    add("settings", nargs="*", metavar="key=value", help="settings of the frontend, such as n_mels=40")
    add(
        "--frontend",
        required=True,
        metavar="NAME|FILE",
        help="an option of configs/model/frontend, a YAML file, a run's config.yaml, or a dotted name",
    )
    rate = "of the waveforms, where the frontend's file does not say it"
    add("--sample-rate", type=positive(int), metavar="HZ", help=rate)
    add("--max-clips", type=positive(int), metavar="N", help="look at so many clips, spread over the manifest")
    add("--num-processes", type=positive(int), default=1, metavar="N", help="the result does not depend on it")
    return parser.parse_intermixed_args(arguments)

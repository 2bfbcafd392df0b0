"""Checkpoints that were damaged or made to harm: refused in one sentence, and nothing has run."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import shutil
import struct
from pathlib import Path

import pytest
import torch

from tests.trainer.tiny import SGD, VectorTrainer, linear, loader
from trainer.callbacks import ExponentialMovingAverage, ModelCheckpoint
from trainer.checkpoint import find, latest, load, load_weights, verify
from utils.errors import UserError


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A checkpoint with everything in it."""
    folder = tmp_path_factory.mktemp("run")
    callbacks = [ExponentialMovingAverage(), ModelCheckpoint()]
    VectorTrainer(linear(), loader(), SGD, callbacks=callbacks, exp_dir=folder, max_steps=3).fit()
    return find("last", folder / "checkpoints")


@pytest.fixture
def copy(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "checkpoints" / whole.name))


def forge(folder: Path) -> None:
    """A manifest that vouches for whatever lies there, as an attacker would write one."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"] = {
        path.name: {"size": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in folder.iterdir()
        if path.name != "manifest.json"
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


def mutate(folder: Path, seed: int) -> str:
    """One thing wrong: a byte flipped, a file cut short, longer, missing or exchanged."""
    draw = random.Random(seed)
    path = draw.choice(sorted(folder.iterdir()))
    data = bytearray(path.read_bytes())
    kind = draw.choice(("flip", "cut", "grow", "lose", "swap"))
    if kind == "flip":
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
    elif kind == "cut":
        path.write_bytes(data[: draw.randrange(len(data))])
    elif kind == "grow":
        path.write_bytes(data + bytes(draw.randrange(1, 100)))
    elif kind == "lose":
        path.unlink()
    else:
        other = draw.choice(sorted(p for p in folder.iterdir() if p != path))
        shutil.copy(other, path)
    return f"{kind} {path.name}"


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b))
    return a == b


def test_a_hundred_mutated_checkpoints_never_load_silently_wrong(whole, tmp_path):
    original = load(whole)
    refused = 0
    for seed in range(100):
        folder = Path(shutil.copytree(whole, tmp_path / str(seed) / whole.name))
        what = mutate(folder, seed)
        try:
            loaded = load(folder)
        except UserError:
            refused += 1
            continue
        # Only a mutation of the manifest that leaves its meaning alone (a space, say) may load, and then unharmed.
        assert "manifest.json" in what, what
        assert same(vars(loaded), vars(original)), what
    assert refused >= 90


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("name", ["training.pt", "rank_0.pt"])
@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_a_pickle_that_executes_is_refused_and_has_not_run(copy, tmp_path, name, writer):
    marker = tmp_path / "executed"
    if writer == "torch":
        torch.save({"state": Payload(marker)}, copy / name)
    else:
        (copy / name).write_bytes(pickle.dumps(Payload(marker)))
    forge(copy)
    with pytest.raises(UserError, match=f"{name} is not a state that we wrote, and was not loaded"):
        load(copy)
    assert not marker.exists()


@pytest.mark.parametrize("name", ["../outside.pt", "/etc/passwd", "a/b.pt", "..", ""])
def test_a_manifest_can_not_point_out_of_its_folder(copy, name):
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"][name] = {"size": 1, "sha256": "0"}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert any("is not a plain file of the folder" in problem for problem in verify(copy))
    with pytest.raises(UserError, match="is not whole"):
        load(copy)


def test_symbolic_links_and_files_that_nobody_named_are_refused(copy, tmp_path):
    outside = tmp_path / "outside.safetensors"
    shutil.copy(copy / "model.safetensors", outside)
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors").symlink_to(outside)
    assert any("'model.safetensors' is not a plain file" in problem for problem in verify(copy))
    (copy / "extra.safetensors").write_bytes(b"x")
    assert any(problem == "extra.safetensors is not named by its manifest" for problem in verify(copy))
    assert latest(copy.parent) is None


@pytest.mark.parametrize(
    "header",
    [
        {"weight": {"dtype": "F64", "shape": [1, 4], "data_offsets": [0, 10**12]}},
        {"weight": {"dtype": "F64", "shape": [10**9, 10**9], "data_offsets": [0, 32]}},
        {"weight": {"dtype": "F64", "shape": [1, 4], "data_offsets": [-8, 24]}},
        {"__metadata__": {"aliases": '{"bias": "nowhere"}'}},
    ],
)
def test_a_safetensors_file_with_lying_sizes_is_refused(copy, header):
    text = json.dumps(header).encode()
    (copy / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(32))
    (copy / "ema.safetensors").unlink()
    forge(copy)
    with pytest.raises(UserError, match="can not read the weights"):
        load_weights(linear(), copy)


@pytest.mark.parametrize("text", ["[" * 200_000, " " * 2_000_000 + "{}", "{}", "[1]", '{"files": 3}', "\0"])
def test_a_manifest_that_is_none_is_refused(copy, text):
    (copy / "manifest.json").write_text(text)
    assert verify(copy) == ["its manifest.json can not be read"]
    assert latest(copy.parent) is None

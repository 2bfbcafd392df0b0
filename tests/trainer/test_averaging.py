"""Means of weights, against the same means computed directly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.trainer.tiny import SGD, VectorTrainer, loader
from trainer import Callback
from trainer import checkpoint as checkpoints
from trainer.averaging import main, mean_of
from trainer.callbacks import ModelCheckpoint, RunningAverage
from trainer.checkpoint import find, load_weights, read_weights, step_folders, verify


class Tied(nn.Module):
    """Two names for one weight, an integer and a float buffer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.BatchNorm1d(4)
        self.a, self.b = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.b.weight = self.a.weight
        self.head = nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.b(self.a(self.norm(x.float())))).double()


class Remember(Callback):
    def __init__(self) -> None:
        self.states: dict[int, dict[str, torch.Tensor]] = {}

    def on_update_end(self, trainer):
        self.states[trainer.global_step] = {k: v.clone() for k, v in trainer.model.state_dict().items()}

    def mean(self, steps: range | list[int]) -> dict[str, torch.Tensor]:
        newest = self.states[steps[-1]]
        return {
            name: torch.stack([self.states[s][name].double() for s in steps]).mean(0).to(tensor.dtype)
            if tensor.is_floating_point()
            else tensor
            for name, tensor in newest.items()
        }


def train(exp_dir: Path, remember: Remember, max_steps: int = 8, **options) -> VectorTrainer:
    callbacks = {
        "remember": remember,
        "running_average": RunningAverage(),
        "checkpoint": ModelCheckpoint(every_n_steps=2, every_n_epochs=None, keep_last=9, monitor="val/loss",
                                      keep_best=2),
    }  # fmt: skip
    trainer = VectorTrainer(Tied(), loader(), SGD, None, None, loader(8), callbacks=callbacks, exp_dir=exp_dir,
                            max_steps=max_steps, val_every_n_steps=2, **options)  # fmt: skip
    trainer.fit()
    return trainer


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Remember, VectorTrainer]:
    exp_dir, remember = tmp_path_factory.mktemp("run"), Remember()
    trainer = train(exp_dir, remember)
    (exp_dir / "config.yaml").write_text("model: tied\n")
    return exp_dir, remember, trainer


def average(exp_dir: Path, out: Path, *options: object) -> dict[str, torch.Tensor]:
    assert main(["--dir", str(exp_dir / "checkpoints"), "--out", str(out), *map(str, options)]) == 0
    load_weights(model := Tied(), find(out, exp_dir / "checkpoints"))
    return model.state_dict()


def assert_close(a, b):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=1e-7, rtol=1e-6)


def test_the_last_k(trained, tmp_path):
    exp_dir, remember, _ = trained
    assert_close(average(exp_dir, tmp_path / "out", "--last", 3), remember.mean([4, 6, 8]))


def test_a_range_of_steps(trained, tmp_path):
    exp_dir, remember, _ = trained
    assert_close(average(exp_dir, tmp_path / "out", "--steps", "2:5"), remember.mean([2, 4]))


def test_the_best_k(trained, tmp_path):
    exp_dir, remember, trainer = trained
    best = sorted(step for _, step in trainer.callbacks["checkpoint"].state_dict()["best"])
    assert_close(average(exp_dir, tmp_path / "out", "--best", 2), remember.mean(best))


def test_what_is_exported_is_a_model_checkpoint(trained, tmp_path):
    exp_dir, *_ = trained
    average(exp_dir, tmp_path / "out", "--last", 2)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "config.yaml", "manifest.json", "model.safetensors",
    ]  # fmt: skip
    assert verify(tmp_path / "out") == []
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert (manifest["global_step"], manifest["mean_over_checkpoints"]) == (8, [6, 8])


def test_the_mean_over_updates_between_two_checkpoints(trained, tmp_path):
    exp_dir, remember, _ = trained
    folders = [exp_dir / f"checkpoints/step_0000000{step}" for step in (2, 8)]
    averaged = average(exp_dir, tmp_path / "out", "--between", *folders)
    assert_close(averaged, remember.mean(range(3, 9)))


def test_running_sums_survive_a_resume_to_the_bit(trained, tmp_path):
    exp_dir, *_ = trained
    train(tmp_path, Remember(), max_steps=4)
    train(tmp_path, Remember(), auto_resume=True)
    ours, theirs = (
        read_weights(path / "checkpoints/step_00000008/running_sum.safetensors") for path in (tmp_path, exp_dir)
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_sums_are_kept_in_float64(tmp_path):
    """In float32 the one would be lost beside the hundred million."""
    folder = tmp_path / "checkpoints"
    for step, value in ((1, 1e8), (2, 1.0), (3, -1e8)):
        (partial := folder / f".step_{step}.partial").mkdir(parents=True)
        checkpoints.save_weights({"w": torch.tensor([value])}, partial / "model.safetensors")
        checkpoints.publish(partial, folder / f"step_{step:08d}", step)
    assert mean_of([path for _, path in step_folders(folder)])["w"].item() == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--last", "9"], "--last: {dir} has 4 such checkpoints, 9 are needed"),
        (["--best", "3"], "--best: {dir} has 2 such checkpoints, 3 are needed"),
        (["--steps", "90:99"], "--steps 90:99: {dir} has 0 such checkpoints, 1 are needed"),
        (["--between", "{dir}/step_00000004", "{dir}/step_00000002"], "name the older one first"),
    ],
)
def test_what_can_not_be_averaged_is_said_in_a_sentence(trained, tmp_path, capsys, options, sentence):
    directory = trained[0] / "checkpoints"
    given = [option.format(dir=directory) for option in options]
    assert main(["--dir", str(directory), "--out", str(tmp_path / "out"), *given]) == 1
    assert sentence.format(dir=directory) in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_existing_folder_is_not_written_over(trained, tmp_path, capsys):
    assert main(["--dir", str(trained[0] / "checkpoints"), "--out", str(tmp_path), "--last", "2"]) == 1
    assert f"--out: {tmp_path} is there already" in capsys.readouterr().err

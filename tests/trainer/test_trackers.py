"""Metrics reach the file and the trackers, and those are closed whatever happens."""

from __future__ import annotations

import importlib.util
import json
import wave
from pathlib import Path

import pytest

from tests.trainer.tiny import SGD, VectorTrainer, linear, loader
from trainer.trackers import JsonlTracker, TensorBoardTracker, WandbTracker


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_metrics_reach_jsonl_and_tensorboard_with_updates_as_their_axis(tmp_path):
    VectorTrainer(
        linear(), loader(), SGD, None, None, loader(8), exp_dir=tmp_path,
        trackers={"tb": TensorBoardTracker, "off": None}, hyperparameters={"seed": 1},
        epochs=2, gradient_accumulation_steps=2, log_every_n_steps=2,
    ).fit()  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "train/loss" in line] == [2, 4, 6, 8]
    assert [line["step"] for line in lines if "val/loss" in line] == [4, 8]
    logged = scalars(tmp_path / "tensorboard")
    assert [step for step, _ in logged["train/loss"]] == [2, 4, 6, 8]
    assert logged["val/mae"][-1][1] == pytest.approx(lines[-1]["val/mae"], rel=1e-6)


def test_a_resumed_jsonl_forgets_what_came_after_and_half_a_line(tmp_path):
    tracker = JsonlTracker(tmp_path)
    for step in (5, 10, 15):
        tracker.log({"train/loss": 1.0}, step, 0)
    tracker.close()
    with tracker.path.open("a") as file:
        file.write('{"step": 7, "trai')
    tracker = JsonlTracker(tmp_path)
    tracker.resume(10)
    tracker.log({"train/loss": 2.0}, 12, 0)
    tracker.close()
    assert [json.loads(line)["step"] for line in tracker.path.read_text().splitlines()] == [5, 10, 12]


def test_trackers_are_closed_when_a_run_fails(tmp_path):
    closed = []

    class Watched(JsonlTracker):
        def close(self):
            closed.append(True)
            super().close()

    class Failing(VectorTrainer):
        def training_step(self, batch, batch_idx):
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError):
        Failing(linear(), loader(), SGD, epochs=1, exp_dir=tmp_path, trackers=[Watched]).fit()
    assert closed == [True]


def test_tensorboard_shows_pictures_and_sounds(tmp_path):
    import matplotlib.image
    import numpy as np

    matplotlib.image.imsave(tmp_path / "a.png", np.zeros((4, 4, 3)))
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(b"\0\0" * 800)
    tracker = TensorBoardTracker(tmp_path)
    tracker.log_files({"picture": tmp_path / "a.png", "sound": tmp_path / "a.wav"}, step=1)
    tracker.close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Tags()["images"] == ["picture"]
    assert events.Tags()["audio"] == ["sound"]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is an extra")
def test_wandb_offline_keeps_one_run_over_a_resume(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    for max_steps in (2, 4):
        VectorTrainer(linear(), loader(), SGD, exp_dir=tmp_path, trackers=[WandbTracker], max_steps=max_steps,
                      hyperparameters={"seed": 1}, log_every_n_steps=2).fit()  # fmt: skip
    runs = list((tmp_path / "wandb").glob("offline-run-*"))
    identity = (tmp_path / "wandb_id.txt").read_text()
    assert runs
    assert all(run.name.endswith(identity) for run in runs)

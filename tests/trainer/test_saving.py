"""A save that is slow, fails or is killed never costs the run, nor the checkpoints it has."""

from __future__ import annotations

import errno
import json
import logging
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.trainer.test_bad_samples import rotten
from tests.trainer.test_resume import PullThePlug, Unplugged, assert_same, make
from tests.trainer.tiny import SGD, VectorTrainer, linear, loader
from trainer import Callback, saving
from trainer import checkpoint as checkpoints
from trainer.callbacks import ExponentialMovingAverage, Freeze, ModelCheckpoint
from trainer.checkpoint import Checkpoint, latest, load_weights, read_frozen, read_weights, step_folders, verify
from trainer.saving import HostBuffers, SaveError
from utils.errors import UserError

ROOT = Path(__file__).parents[2]


def run(exp_dir: Path, *callbacks: Callback, model: nn.Module | None = None, **options) -> VectorTrainer:
    options = {"max_steps": 6} | options
    trainer = VectorTrainer(model or linear(), loader(), SGD, callbacks=callbacks, exp_dir=exp_dir, **options)
    trainer.fit()
    return trainer


def every_step(**settings) -> ModelCheckpoint:
    return ModelCheckpoint(every_n_steps=1, every_n_epochs=None, **settings)


def steps(exp_dir: Path) -> list[int]:
    return [step for step, _ in step_folders(exp_dir / "checkpoints")]


# -------------------------------------------------------------------------------------------------------- asynchronous


class Hold:
    """Keeps the background from publishing until it is let go."""

    def __init__(self, monkeypatch):
        self.go, self.threads = threading.Event(), []
        publish = checkpoints.publish

        def held(*arguments, **notes):
            self.threads.append(threading.current_thread().name)
            assert self.go.wait(20)
            publish(*arguments, **notes)

        monkeypatch.setattr(checkpoints, "publish", held)


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    hold, weights = Hold(monkeypatch), {}

    class Watch(Callback):
        def on_update_end(self, trainer):
            weights[trainer.global_step] = trainer.model.weight.detach().clone()
            if trainer.global_step == 5:
                assert latest(trainer.checkpoint_dir) is None
                hold.go.set()

    checkpoint = ModelCheckpoint(every_n_steps=3, every_n_epochs=None, keep_last=9, asynchronous=True)
    run(tmp_path, checkpoint, Watch())
    assert hold.threads == ["checkpoint", "MainThread"]  # nothing trains behind the last one
    saved = read_weights(tmp_path / "checkpoints/step_00000003/model.safetensors")["weight"]
    assert torch.equal(saved, weights[3])
    assert not torch.equal(saved, weights[5])


def test_links_and_older_checkpoints_change_only_when_the_new_one_is_whole(tmp_path, monkeypatch):
    hold, seen = Hold(monkeypatch), []
    hold.go.set()

    class Watch(Callback):
        def on_update_end(self, trainer):
            if trainer.global_step == 2:
                trainer.finish_saving()
                hold.go.clear()
            if trainer.global_step == 3:
                seen.append((steps(tmp_path), (tmp_path / "checkpoints/last").resolve().name))
                hold.go.set()
                trainer.finish_saving()
                seen.append((steps(tmp_path), (tmp_path / "checkpoints/last").resolve().name))

    run(tmp_path, every_step(asynchronous=True), Watch())
    assert seen == [([2], "step_00000002"), ([3], "step_00000003")]


def test_a_failure_in_the_background_is_told_and_undone(tmp_path, monkeypatch, caplog):
    write, calls = checkpoints.write_shared, []

    def failing(checkpoint, partial):
        calls.append(checkpoint.global_step)
        if checkpoint.global_step == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(checkpoint, partial)

    monkeypatch.setattr(checkpoints, "write_shared", failing)
    run(tmp_path, every_step(asynchronous=True, keep_last=9), max_steps=5)
    assert calls == [1, 2, 3, 4, 5]
    assert steps(tmp_path) == [1, 2, 4, 5]
    error = next(r.getMessage() for r in caplog.records if r.levelno == logging.ERROR)
    assert "checkpoints/step_00000003 could not be written: [Errno 28] No space left on device" in error
    assert "Older ones are as they were, and the run goes on" in error


def test_the_snapshot_allocates_once_and_keeps_ties():
    buffers, weight = HostBuffers(), torch.ones(3)
    tree = {"a": weight, "tied": weight, "list": [torch.tensor(2), (1, "x")]}
    first = buffers.copy(tree)
    weight.add_(1)
    assert first["a"].tolist() == [1, 1, 1]
    assert first["a"] is first["tied"]
    again = buffers.copy(tree)
    assert again["a"] is first["a"]
    assert again["a"].tolist() == [2, 2, 2]
    assert again["list"] == [torch.tensor(2), (1, "x")]


@pytest.mark.parametrize(("workers", "accumulation"), [(0, 1), (0, 4), (2, 1)])
def test_a_resumed_run_that_saves_asynchronously_ends_bit_identical(tmp_path, workers, accumulation):
    settings = {"workers": workers, "accumulation": accumulation, "asynchronous": True}
    make(tmp_path / "whole", workers=workers, accumulation=accumulation).fit()
    with pytest.raises(Unplugged):
        make(tmp_path / "killed", PullThePlug(5), **settings).fit()
    make(tmp_path / "killed", auto_resume=True, **settings).fit()
    assert_same(tmp_path / "whole", tmp_path / "killed")


# -------------------------------------------------------------------------------------------------------------- faults


class FailAt:
    """`save_file` finds the disk full while these updates are saved."""

    def __init__(self, monkeypatch, *steps: int):
        save_file = checkpoints.save_file

        def full(tensors, path, **settings):
            if int(path.parent.name.split("_")[1].split(".")[0]) in steps:
                path.write_bytes(b"half of it")
                raise OSError(errno.ENOSPC, "No space left on device")
            save_file(tensors, path, **settings)

        monkeypatch.setattr(checkpoints, "save_file", full)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_full_disk_costs_one_checkpoint_and_nothing_else(tmp_path, monkeypatch, caplog, asynchronous):
    FailAt(monkeypatch, 4)
    seen = {}

    class Watch(Callback):
        def on_update_end(self, trainer):
            if trainer.global_step == 4:
                trainer.finish_saving()
                seen[4] = steps(tmp_path), sorted(p.name for p in trainer.checkpoint_dir.iterdir())

    trainer = run(tmp_path, every_step(asynchronous=asynchronous), Watch())
    assert seen[4] == ([3], ["last", "step_00000003"])
    assert trainer.global_step == 6
    assert steps(tmp_path) == [6]
    assert "step_00000004 could not be written" in caplog.text


def test_the_best_is_still_there_when_the_next_best_could_not_be_saved(tmp_path, monkeypatch):
    FailAt(monkeypatch, 4)
    checkpoint = ModelCheckpoint(monitor="val/loss", every_n_epochs=None)
    VectorTrainer(linear(), loader(), SGD, None, None, loader(8), callbacks=[checkpoint], exp_dir=tmp_path,
                  max_steps=5, val_every_n_steps=2).fit()  # fmt: skip
    assert checkpoint.best.step in steps(tmp_path)
    assert (tmp_path / "checkpoints/best").resolve().name == f"step_{checkpoint.best.step:08d}"


def test_a_run_whose_last_checkpoint_failed_does_not_end_well(tmp_path, monkeypatch):
    FailAt(monkeypatch, 6)
    with pytest.raises(UserError, match=r"the run is done, but its last checkpoint .*step_00000006 could not be"):
        run(tmp_path, every_step())
    assert steps(tmp_path) == [5]


def test_who_saves_by_hand_hears_of_a_failure(tmp_path, monkeypatch):
    FailAt(monkeypatch, 6)
    trainer = run(tmp_path)
    with pytest.raises(SaveError, match="step_00000006 could not be written"):
        trainer.save_checkpoint()


def test_a_disk_that_is_full_at_a_log_a_bad_sample_and_a_bad_batch_ends_no_run(tmp_path, caplog):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    class Spoilt(VectorTrainer):
        def training_step(self, batch, batch_idx):
            output = super().training_step(batch, batch_idx)
            output.loss = output.loss * (float("nan") if 5 in batch["index"] else 1.0)
            return output

        def on_train_batch_start(self, batch, batch_idx):
            limit = 8 if batch_idx < 4 else soft
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))

    data = rotten(32, (2,))
    try:
        trainer = Spoilt(linear(), data, SGD, exp_dir=tmp_path, max_steps=6, log_every_n_steps=1, on_non_finite="skip")
        trainer.fit()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert caplog.text.count("tried again at the next log") == 1
    assert "can not write bad_samples.jsonl" in caplog.text
    assert "the batch could not be written" in caplog.text
    assert trainer.state.num_non_finite == 1


def test_a_real_limit_of_the_system_is_survived(tmp_path, caplog):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    class Limit(Callback):
        def on_save_checkpoint(self, trainer, checkpoint):
            limit = 64 if checkpoint.global_step in (2, 3) else soft
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))

        def on_update_end(self, trainer):
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    try:
        run(tmp_path, every_step(keep_last=9), Limit())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert steps(tmp_path) == [1, 4, 5, 6]
    assert "Traceback" not in caplog.text
    assert "step_00000002 could not be written: [Errno 28] only a part of " in caplog.text
    assert all(not verify(folder) for _, folder in step_folders(tmp_path / "checkpoints"))
    assert "step_00000002 could not be written" in caplog.text


def killed_run(exp_dir: str, where: str) -> None:
    """What the process does that is killed inside its second save."""
    import os

    inner = getattr(checkpoints, where)

    def kill(*arguments, **settings):
        if "step_00000004" in str(arguments):
            os.kill(os.getpid(), signal.SIGKILL)
        return inner(*arguments, **settings)

    setattr(checkpoints, where, kill)
    make(Path(exp_dir), asynchronous=True).fit()


@pytest.mark.slow
@pytest.mark.parametrize("where", ["save_file", "_write_manifest"])
def test_a_save_that_is_killed_leaves_the_one_before_and_is_cleaned_up(tmp_path, where):
    make(tmp_path / "whole").fit()
    code = f"from tests.trainer.test_saving import killed_run; killed_run({str(tmp_path / 'killed')!r}, {where!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=120)
    assert done.returncode == -signal.SIGKILL
    checkpoints_dir = tmp_path / "killed/checkpoints"
    assert (checkpoints_dir / ".step_00000004.partial").is_dir()
    assert latest(checkpoints_dir).name == "step_00000002"
    make(tmp_path / "killed", auto_resume=True).fit()
    assert not list(checkpoints_dir.glob(".step_*"))
    assert_same(tmp_path / "whole", tmp_path / "killed")


def test_a_folder_whose_replacement_was_killed_is_given_back_its_name(tmp_path, caplog):
    run(tmp_path, every_step(), max_steps=2)
    folder = latest(tmp_path / "checkpoints")
    folder.rename(folder.with_name(f".{folder.name}.replaced"))
    (folder.parent / ".step_00000002.partial").mkdir()
    trainer = run(tmp_path, every_step(), max_steps=3, auto_resume=True)
    assert trainer._resumed_from == folder
    assert f"removed {folder.parent / '.step_00000002.partial'}" in caplog.text
    assert sorted(path.name for path in folder.parent.iterdir()) == ["last", "step_00000003"]


# ------------------------------------------------------------------------------------------------------ only trainable


def frozen_model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).double()


def train_frozen(exp_dir: Path, seed: int = 0, **options) -> nn.Module:
    model = frozen_model(seed)
    callbacks = (
        every_step(only_trainable=True), Freeze(["0\\."]), ExponentialMovingAverage(0.5),
    )  # fmt: skip
    run(exp_dir, *callbacks, model=model, **options)
    return model


def test_frozen_parameters_are_left_out_named_and_hashed(tmp_path):
    train_frozen(tmp_path)
    folder = latest(tmp_path / "checkpoints")
    for stem in ("model", "ema"):
        file = folder / f"{stem}.safetensors"
        assert not {"0.weight", "0.bias"} & set(read_weights(file))
        assert {"1.running_mean", "2.weight"} < set(read_weights(file))
        assert set(read_frozen(file)) == {"0.weight", "0.bias"}


def test_a_run_without_its_frozen_parameters_resumes_bit_identical(tmp_path):
    whole = train_frozen(tmp_path / "whole")
    train_frozen(tmp_path / "parts", max_steps=3)
    parts = train_frozen(tmp_path / "parts", auto_resume=True)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), parts.state_dict().values()))
    load_weights(loaded := frozen_model(), latest(tmp_path / "parts/checkpoints"))
    assert torch.equal(loaded[0].weight, whole[0].weight)


def test_another_frozen_part_is_refused_by_name(tmp_path):
    train_frozen(tmp_path, max_steps=3)
    sentence = r"leaves out the frozen 0.weight, and the model does not hold what the run had there: build the model"
    with pytest.raises(UserError, match=sentence):
        train_frozen(tmp_path, seed=1, auto_resume=True)
    with pytest.raises(UserError, match=sentence):
        load_weights(frozen_model(1), latest(tmp_path / "checkpoints"))


def test_what_was_trained_before_it_was_frozen_is_saved(tmp_path):
    model = frozen_model()

    class FreezeLater(Callback):
        def on_update_end(self, trainer):
            if trainer.global_step == 2:
                model[0].requires_grad_(False)

    run(tmp_path, FreezeLater(), every_step(only_trainable=True), model=model, max_steps=3)
    assert torch.equal(read_weights(tmp_path / "checkpoints/last/model.safetensors")["0.weight"], model[0].weight)


# --------------------------------------------------------------------------------------------------------- other ranks


def save_as(rank: int, directory: Path) -> saving._Save:
    checkpoint = Checkpoint(7, {"model": {"w": torch.ones(2)}}, {"n": 1}, {"rank": rank})
    return saving._Save(checkpoint, directory, rank, 2, saving.After())


def test_the_folder_is_published_when_every_rank_has_written(tmp_path):
    main, peer = save_as(0, tmp_path), save_as(1, tmp_path)
    assert main.begin() is None
    main.start(HostBuffers())
    assert latest(tmp_path) is None
    peer.start(HostBuffers())
    assert (peer.join(), main.join()) == (None, None)
    assert verify(main.final) == []
    assert checkpoints.load(main.final, rank=1).rank == {"rank": 1}


def test_nobody_publishes_when_one_rank_can_not_write(tmp_path, monkeypatch):
    main, peer = save_as(0, tmp_path), save_as(1, tmp_path)
    write = checkpoints.write_rank

    def full(own, partial, rank):
        if rank == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(own, partial, rank)

    monkeypatch.setattr(checkpoints, "write_rank", full)
    main.begin()
    main.start(HostBuffers())
    peer.start(HostBuffers())
    assert peer.join().startswith("[Errno 28] No space left on device (")
    assert main.join() == "rank 1 could not write its part"
    assert list(tmp_path.iterdir()) == []


def test_a_rank_that_is_gone_is_not_waited_for_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "PEER_SECONDS", 0.1)
    main = save_as(0, tmp_path)
    main.begin()
    assert main.run() == "rank 1 has not written its part"
    assert list(tmp_path.iterdir()) == []

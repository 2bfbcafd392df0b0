"""What machines do to a run: memory that runs out, trackers that fail, clocks that jump."""

from __future__ import annotations

import json
import time

import pytest
import torch

from tests.trainer.tiny import SGD, VectorTrainer, linear, loader
from trainer import Callback, tolerant
from trainer.callbacks import Diagnostics, ModelCheckpoint, Throughput
from utils.errors import UserError


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_out_of_memory_names_the_batch_its_lengths_and_remedies(tmp_path, error):
    class Greedy(VectorTrainer):
        def training_step(self, batch, batch_idx):
            batch |= {"id": ["a", "b", "c", "d"], "audio_lens": torch.tensor([160, 80, 20, 10])}
            if self.global_step == 3:
                raise error
            return super().training_step(batch, batch_idx)

    with pytest.raises(UserError) as raised:
        Greedy(linear(), loader(), SGD, epochs=1, exp_dir=tmp_path, callbacks=[ModelCheckpoint(1), Diagnostics()]).fit()
    told = str(raised.value)
    assert "out of memory on cpu, in epoch 0, update 3, batch 3 on a batch with ids a, b, c, d" in told
    assert "audio_lens 160, 80, 20, 10; x float64[4, 4]" in told
    assert "gradient_accumulation_steps" in told
    assert "go on from the last checkpoint with auto_resume=true" in told
    assert json.loads((tmp_path / "failed_batch_rank0.json").read_text())["batch"]["lengths"]["audio_lens"][0] == 160


def test_any_other_error_comes_through_as_it_is(tmp_path):
    class Wrong(VectorTrainer):
        def training_step(self, batch, batch_idx):
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1 and mat2") as raised:
        Wrong(linear(), loader(), SGD, epochs=1).fit()
    assert not isinstance(raised.value, UserError)


class Unreachable:
    """A tracker whose server is away for its first calls."""

    def __init__(self, exp_dir, away_for: int = 10**9, away_at_start: bool = False) -> None:
        self.calls, self.away_for, self.logged = 0, away_for, []
        Unreachable.last = self
        if away_at_start:
            raise ConnectionError("no route to host")

    def log(self, metrics, step, epoch):
        self.calls += 1
        if self.calls <= self.away_for:
            raise ConnectionError("no route to host")
        self.logged.append(step)

    def log_hyperparameters(self, config): ...
    def log_files(self, files, step): ...
    def resume(self, step): ...
    def close(self): ...


def run_with(tracker, tmp_path) -> list[int]:
    VectorTrainer(
        linear(), loader(), SGD, epochs=1, log_every_n_steps=1, exp_dir=tmp_path, trackers={"far": tracker}
    ).fit()
    return [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]


def test_a_tracker_that_fails_is_warned_of_once_and_left_alone_for_a_while(tmp_path, caplog):
    assert run_with(Unreachable, tmp_path) == list(range(1, 9))
    assert Unreachable.last.calls == 1
    warnings = [record.getMessage() for record in caplog.records if "tracker.far" in record.getMessage()]
    assert len(warnings) == 1
    assert warnings[0].startswith("tracker.far: ConnectionError: no route to host; training goes on")


def test_a_tracker_that_comes_back_is_used_again(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(tolerant, "_SECONDS_TO_RETRY", 0.0)
    run_with(lambda exp_dir: Unreachable(exp_dir, away_for=3), tmp_path)
    assert Unreachable.last.logged == [4, 5, 6, 7, 8]
    assert "tracker.far: it is back; 3 calls are lost to it" in caplog.text


def test_a_server_away_at_the_start_does_not_keep_a_run_from_starting(tmp_path):
    assert len(run_with(lambda exp_dir: Unreachable(exp_dir, away_at_start=True), tmp_path)) == 8


def test_a_missing_package_is_still_said_at_once(tmp_path):
    def make(exp_dir):
        raise UserError("tracker.far: the package is missing")

    with pytest.raises(UserError, match="the package is missing"):
        run_with(make, tmp_path)


def test_a_clock_that_jumps_moves_neither_the_deadline_nor_the_throughput(tmp_path, monkeypatch):
    real, hours = time.time, iter([0.0, -9.0, 5.0, -100.0] * 1000)
    monkeypatch.setattr(time, "time", lambda: real() + 3600 * next(hours))
    seen: list[dict[str, float]] = []

    class Watch(Callback):
        def on_log(self, trainer, metrics):
            seen.append(dict(metrics))

    trainer = VectorTrainer(
        linear(), loader(), SGD, epochs=2, max_time="01:00:00", log_every_n_steps=2, exp_dir=tmp_path,
        callbacks=[Throughput(), Watch()],
    )  # fmt: skip
    trainer.fit()
    assert trainer.global_step == 16
    assert all(0 < metrics["perf/steps_per_s"] < 1e6 and 0 <= metrics["perf/data_wait"] <= 1 for metrics in seen)

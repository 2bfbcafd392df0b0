"""Real processes, hurt: by signals, by a killed worker, by a rank that fails, hangs or is killed."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.faulty import make
from tests.trainer.test_resume import assert_same
from trainer.checkpoint import latest
from trainer.interruption import Interrupted
from utils.errors import UserError

ROOT = Path(__file__).parents[2]
EMPTY: Mapping[str, str] = {}


def start(exp_dir: Path, launcher: tuple[str, ...] = (sys.executable,), environment: Mapping[str, str] = EMPTY,
          rank: int | None = None, port: int = 0, **options: Any) -> subprocess.Popen[str]:  # fmt: skip
    """`tests.trainer.faulty` in a session of its own; with `rank`, one of two without an agent above them."""
    own = {**environment, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}
    if rank is not None:
        own |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}  # fmt: skip
    return subprocess.Popen(
        [*launcher, "-m", "tests.trainer.faulty", json.dumps({"exp_dir": str(exp_dir), **options})], cwd=ROOT,
        env=os.environ | own, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def start_two(exp_dir: Path, **options: Any) -> list[subprocess.Popen[str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [start(exp_dir, rank=rank, port=port, **options) for rank in (0, 1)]


def end(process: subprocess.Popen[str], within: float = 120) -> tuple[int, str]:
    try:
        _, stderr = process.communicate(timeout=within)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, stderr


def wait_for_updates(exp_dir: Path, step: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        metrics = exp_dir / "metrics.jsonl"
        if metrics.exists() and f'"step": {step},' in metrics.read_text():
            return
        time.sleep(0.02)
    pytest.fail(f"update {step} was never logged: {process.communicate()[1]}")


# -------------------------------------------------------------------------------------------------------------- signals


@pytest.mark.slow
def test_sigterm_to_the_whole_group_saves_and_the_same_command_ends_bit_identical(tmp_path):
    """As SLURM and torchrun send it: data workers get it too, and must not die of it before the trainer has saved."""
    make(tmp_path / "whole").fit()
    process = start(tmp_path / "run", workers=2, seconds_per_batch=0.05, every=100)
    wait_for_updates(tmp_path / "run", 9, process)
    os.killpg(process.pid, signal.SIGTERM)
    code, stderr = end(process)
    assert code == 143, stderr
    assert "SIGTERM: stopped after update" in stderr
    assert "go on with the same command and auto_resume=true" in stderr
    assert 9 <= int(latest(tmp_path / "run/checkpoints").name[5:]) < 24
    make(tmp_path / "run", auto_resume=True, every=100).fit()
    assert_same(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130), ("SIGUSR1", 138)])
def test_a_signal_ends_at_the_next_update_with_its_own_code_and_handlers_are_put_back(tmp_path, name, code):
    before = signal.getsignal(signal.Signals[name])
    with pytest.raises(Interrupted) as stopped:
        make(tmp_path, faults=[(name, 4)], checkpoint=False, accumulation=2).fit()
    assert stopped.value.code == code
    assert latest(tmp_path / "checkpoints").name == "step_00000005"
    assert signal.getsignal(signal.Signals[name]) is before


def test_a_signal_without_a_folder_ends_too(tmp_path, caplog):
    trainer = make(tmp_path, faults=[("SIGTERM", 4)], checkpoint=False)
    trainer.exp_dir = None
    with pytest.raises(Interrupted):
        trainer.fit()
    assert "stopped after update 5, nothing is saved, the trainer has no exp_dir" in caplog.text


def test_a_signal_with_the_last_update_changes_nothing(tmp_path):
    """The validation that ends a run would be broken off: tests/trainer/test_interrupted_validation.py."""
    trainer = make(tmp_path, faults=[("SIGTERM", 23)])
    trainer.val_dataloader = None
    trainer.fit()
    assert trainer.global_step == 24


def test_a_second_sigint_ends_at_once(tmp_path):
    process = start(tmp_path / "run", faults=[("SIGINT", 4), ("SIGINT", 4)])
    assert end(process)[0] == -signal.SIGINT


def test_signals_that_can_not_be_caught_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"trainer.stop_signals: SIGKILL can not be caught"):
        make(tmp_path, stop_signals=["SIGKILL"])
    with pytest.raises(UserError, match=r"trainer.stop_signals: there is no signal 'TERM'"):
        make(tmp_path, stop_signals=["TERM"])


# ----------------------------------------------------------------------------------------------------- one of two ranks


@pytest.mark.slow
def test_where_one_rank_fails_the_other_ends_and_points_to_it(tmp_path):
    started = time.monotonic()
    ranks = start_two(tmp_path / "run", faults=[("raise", 5, 1)])
    (code_0, stderr_0), (code_1, stderr_1) = [end(rank) for rank in ranks]
    assert code_1 == 1, stderr_1
    assert "RuntimeError: the first error" in stderr_1
    assert code_0 == 2, stderr_0
    assert "another process of this run has ended" in stderr_0
    assert time.monotonic() - started < 60


@pytest.mark.slow
def test_a_hung_rank_ends_the_run_with_the_stacks_of_all(tmp_path):
    ranks = start_two(tmp_path / "run", faults=[("sleep", 5, 1)], hang_timeout=3)
    codes, errors = zip(*[end(rank) for rank in ranks])
    assert codes == (124, 124), errors
    assert all("(trainer.hang_timeout)" in stderr for stderr in errors)
    assert "faulty.py" in (tmp_path / "run/stacks_rank1.txt").read_text()
    assert "backward" in (tmp_path / "run/stacks_rank0.txt").read_text()


@pytest.mark.slow
def test_a_killed_rank_is_restarted_by_torchrun_and_the_job_ends_as_if_undisturbed(tmp_path):
    # Its restarted workers would read addresses of dead ones from the store they shared (pytorch/pytorch#135712).
    environment = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
                "--max-restarts", "3")  # fmt: skip
    process = start(tmp_path / "run", launcher, environment, faults=[("SIGKILL", 5, 1)], auto_resume=True)
    code, stderr = end(process)
    assert code == 0, stderr
    assert "resumed from" in stderr
    ranks = start_two(tmp_path / "whole")
    assert [end(rank)[0] for rank in ranks] == [0, 0]
    assert_same(tmp_path / "whole", tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "accumulation"), [(0, 1), (2, 4)])
def test_a_run_killed_at_random_batches_and_started_again_ends_bit_identical(tmp_path, workers, accumulation):
    """A few kills; `benchmarks/kill_and_resume.py` has the hundred."""
    settings = {"workers": workers, "accumulation": accumulation}
    make(tmp_path / "whole", **settings).fit()
    last = 24 // accumulation
    steps = sorted(random.sample(range(1, last), 2))
    for step in steps:
        process = start(tmp_path / "run", faults=[("SIGKILL", step)], auto_resume=True, **settings)
        assert end(process)[0] == -signal.SIGKILL, steps
    code, stderr = end(start(tmp_path / "run", auto_resume=True, **settings))
    assert code == 0, (steps, stderr)
    assert_same(tmp_path / "whole", tmp_path / "run")


# -------------------------------------------------------------------------------------------------------------- workers


ORPHAN = """
import multiprocessing, os, signal, sys, time
from trainer.interruption import spare_worker

def work(late):
    if late:
        time.sleep(0.5)  # the parent is gone before we look
    spare_worker()
    time.sleep(100)

if __name__ == "__main__":
    worker = multiprocessing.get_context(sys.argv[1]).Process(target=work, args=(sys.argv[2] == "late",))
    worker.start()
    print(worker.pid, flush=True)
    if sys.argv[2] != "late":
        time.sleep(1.0 if sys.argv[1] == "fork" else 6.0)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("method", "when"), [("fork", "early"), ("fork", "late"), ("spawn", "early")])
def test_a_worker_does_not_outlive_its_trainer(tmp_path, method, when):
    (tmp_path / "orphan.py").write_text(ORPHAN)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, str(tmp_path / "orphan.py"), method, when]
    # The worker holds the pipes open: this returns when it has ended, and fails where it sleeps on.
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (-signal.SIGKILL, "")


@pytest.mark.slow
def test_a_killed_worker_is_told_in_one_sentence_and_the_run_can_go_on(tmp_path):
    make(tmp_path / "whole").fit()
    options = {"workers": 2, "dying_worker": True, "every": 1}
    code, stderr = end(start(tmp_path / "run", **options))
    assert code == 2, stderr
    told = stderr.strip().splitlines()[-1]
    assert told.startswith("error: data worker ")
    assert re.search(
        "(is killed by signal: Killed|exited unexpectedly): most often the machine ran out of memory", told
    )
    assert end(start(tmp_path / "run", auto_resume=True, **options))[0] == 0
    make(tmp_path / "whole", every=1, auto_resume=True).fit()
    assert_same(tmp_path / "whole", tmp_path / "run")

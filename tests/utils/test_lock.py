"""One run to a folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.trainer.tiny import SGD, VectorTrainer, linear, loader
from utils.errors import UserError
from utils.lock import hold, release

HOLDER = """
import sys, time, os
from pathlib import Path
from utils.lock import hold
hold(Path(sys.argv[1]))
child = os.fork() if len(sys.argv) > 2 else 1  # a data worker, that outlives its trainer
if child:
    print(child, flush=True)
time.sleep(60)
"""


def holder(folder: Path, *more: str) -> tuple[subprocess.Popen[str], int]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder), *more], stdout=subprocess.PIPE, text=True,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    return process, int(process.stdout.readline())


def test_a_second_run_is_refused_by_name_before_anything_is_built(tmp_path):
    process, _ = holder(tmp_path)
    try:
        trainer = VectorTrainer(linear(), loader(), SGD, epochs=1, exp_dir=tmp_path)
        with pytest.raises(UserError, match=rf"exp_dir: .* is in use by process {process.pid} on .* since 2"):
            trainer.fit()
        assert not trainer.units
    finally:
        process.kill()
        process.wait()


def test_the_lock_of_a_killed_run_is_no_obstacle_even_while_its_workers_live(tmp_path):
    process, worker = holder(tmp_path, "with a worker")
    process.kill()
    process.wait()
    try:
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == process.pid
        assert hold(tmp_path)
    finally:
        release(tmp_path)
        os.kill(worker, signal.SIGKILL)


def test_runs_of_one_process_follow_each_other(tmp_path):
    for _ in range(2):
        VectorTrainer(linear(), loader(), SGD, epochs=1, exp_dir=tmp_path).fit()
    assert hold(tmp_path)
    assert not hold(tmp_path)
    release(tmp_path)


def test_a_folder_that_can_not_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    trainer = VectorTrainer(linear(), loader(), SGD, epochs=1, exp_dir=tmp_path / "file" / "run")
    with pytest.raises(UserError, match=r"exp_dir: can not write to .*file/run: Not a directory"):
        trainer.fit()
    assert not trainer.units


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder_is_one_sentence(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match=r"exp_dir: can not write to .*: Permission denied"):
        VectorTrainer(linear(), loader(), SGD, epochs=1, exp_dir=tmp_path).fit()


def test_a_read_only_file_system_is_one_sentence():
    """/proc refuses even root."""
    trainer = VectorTrainer(linear(), loader(), SGD, epochs=1, exp_dir=Path("/proc/run"))
    with pytest.raises(UserError, match=r"exp_dir: can not write to /proc/run: No such file or directory"):
        trainer.fit()

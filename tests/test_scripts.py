"""The SLURM script, with stand-ins for srun and scontrol."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "slurm_requeue.sh"


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments], env=os.environ | environment, capture_output=True, text=True, timeout=30
    )


def test_its_syntax_is_valid():
    assert subprocess.run(["bash", "-n", str(SCRIPT)]).returncode == 0


def test_a_dry_run_shows_the_command_and_needs_no_slurm():
    done = run("exp_dir=runs/a", "experiment=x", DRY_RUN="1", SLURM_JOB_ID="41")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("srun ")
    assert "auto_resume=true" in done.stdout
    assert "MASTER_PORT=20041; exit 138: scontrol requeue 41" in done.stdout


def test_a_folder_is_asked_for():
    done = run("experiment=x", DRY_RUN="1")
    assert done.returncode == 2
    assert "name the folder to go on in" in done.stderr


@pytest.mark.parametrize(("code", "requeued", "exit_code"), [(138, True, 0), (0, False, 0), (3, False, 3)])
def test_only_a_run_that_was_asked_to_end_and_has_saved_is_put_back_into_the_queue(tmp_path, code, requeued, exit_code):
    stand_ins = {
        "srun": f"trap 'exit {code}' USR1; touch started; while true; do sleep 0.05; done",
        "scontrol": 'if [ "$1" = show ]; then echo node1; else echo "$@" > requeued; fi',
    }
    for name, body in stand_ins.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "41"}
    process = subprocess.Popen(["bash", str(SCRIPT), "exp_dir=a"], cwd=tmp_path, env=environment)
    deadline = time.monotonic() + 20
    while not (tmp_path / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(20) == exit_code
    assert (tmp_path / "requeued").exists() == requeued
    if requeued:
        assert (tmp_path / "requeued").read_text() == "requeue 41\n"

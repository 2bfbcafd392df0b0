"""Parameters sharded over two CPU processes: trained, saved whole, resumed."""

from __future__ import annotations

import json

import pytest
import torch

from tests.trainer.sharded_run import Net
from tests.trainer.test_two_processes import torchrun
from trainer.checkpoint import load_weights, read_weights

pytestmark = pytest.mark.slow


def test_a_sharded_run_resumes_bit_identical_and_its_checkpoint_loads_anywhere(tmp_path):
    done = torchrun("-m", "tests.trainer.sharded_run", str(tmp_path), ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    results = json.loads((tmp_path / "out.json").read_text())
    assert results["num_processes"] == 2
    assert results["whole"]["parameter"] == "DTensor"
    assert results["resumed"]["val/loss"] == results["whole"]["val/loss"] != results["part"]["val/loss"]
    whole, resumed = (tmp_path / name / "checkpoints/last" for name in ("whole", "parts"))
    one, other = (read_weights(folder / "model.safetensors") for folder in (whole, resumed))
    assert all(torch.equal(one[name], other[name]) for name in one)
    load_weights(Net(), whole)

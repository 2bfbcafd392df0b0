"""Two real processes on the CPU, in one launch by torchrun; the fixture asserts that there were two."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.trainer import two_processes

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow

CLIPS = (64, 44)  # 44 leave a partial last update, unevenly shared
ACCUMULATIONS = (1, 2, 4)
RAGGED = (33, 41)
# items, batch per process, accumulation, drop_last, epoch_length -> updates in 2 epochs on 2 processes
SCHEDULES = {
    (40, 4, 1, False, None): 10,
    (40, 4, 4, False, None): 4,
    (42, 4, 1, False, None): 12,
    (42, 4, 1, True, None): 10,
    (42, 4, 4, False, 6): 4,
}


def torchrun(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    inherited = {name: value for name, value in os.environ.items() if name != "ACCELERATE_USE_CPU"}
    environment = inherited | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | environment
    return subprocess.run(
        [*command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def together(tmp_path_factory) -> dict[str, Any]:
    """The results of all tasks on two processes."""
    folder = tmp_path_factory.mktemp("two")
    tasks: dict[str, tuple[str, list[Any]]] = {}
    tasks |= {f"topology {a} {n}": ("topology", [2, a, n]) for a in ACCUMULATIONS for n in CLIPS}
    tasks |= {"validated first": ("topology", [2, 1, CLIPS[0], True])}
    tasks |= {f"validation {n}": ("validation", [n]) for n in RAGGED}
    tasks |= {f"schedule {row}": ("schedule", list(row)) for row in SCHEDULES}
    tasks |= {"adversarial": ("adversarial", [2]), "one rank": ("stop_by_one_rank", [])}
    tasks |= {"whole": ("stop_and_resume", [str(folder / "whole"), 12])}
    tasks |= {f"part {n}": ("stop_and_resume", [str(folder / "parts"), n]) for n in (5, 12)}
    tasks |= {f"behind {n}": ("stop_and_resume", [str(folder / "behind"), n, True]) for n in (5, 12)}
    tasks |= {f"full {a}": ("disk_full_on_one_rank", [str(folder / f"full_{a}"), a]) for a in (False, True)}
    tasks |= {"thaw": ("freeze_and_thaw", []), "unused": ("unused", [])}
    tasks |= {"signal": ("signal_to_one_rank", [str(folder / "signal")])}
    tasks |= {p: ("non_finite_on_one_rank", [str(folder / p), p]) for p in ("raise", "skip", "rollback")}
    tasks |= {
        f"spike {p}": ("spike_on_one_rank", [str(folder / f"spike_{p}"), p]) for p in ("raise", "skip", "rollback")
    }
    tasks |= {f"splits {a} {most}": ("splits_on_one_rank", [a, most]) for a in (1, 2) for most in (1, 4)}
    tasks |= {"undisturbed": ("validation_stopped_by_one_rank", [str(folder / "undisturbed"), False])}
    for name, hurt in (("stopped", True), ("done again", False)):
        tasks[name] = ("validation_stopped_by_one_rank", [str(folder / "stopped"), hurt])
    two_processes.elastic(str(folder / "one to two"), 1, 7)
    tasks["one to two"] = ("elastic", [str(folder / "one to two"), 2, -1])
    tasks["two to one"] = ("elastic", [str(folder / "two to one"), 2, 7])
    (folder / "tasks.json").write_text(json.dumps(tasks))
    done = torchrun(
        "-m",
        "tests.trainer.two_processes",
        str(folder / "tasks.json"),
        str(folder / "out.json"),
        ACCELERATE_USE_CPU="true",
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    results = json.loads((folder / "out.json").read_text())
    assert results["num_processes"] == 2
    return results | {"folder": folder}


@pytest.mark.parametrize("num_items", CLIPS)
def test_same_global_batch_same_weights_on_any_topology(together, num_items):
    """{1, 2} processes x accumulation {1, 2, 4}, losses summed over ragged clips."""
    reference = two_processes.topology(1, 1, num_items)
    assert reference["updates"] == 3 * -(-num_items // 8)
    others = [two_processes.topology(1, accumulation, num_items) for accumulation in ACCUMULATIONS[1:]]
    others += [together[f"topology {accumulation} {num_items}"] for accumulation in ACCUMULATIONS]
    for other in others:
        assert other["updates"] == reference["updates"]
        assert other["rates"] == reference["rates"]
        assert other["weight"] == pytest.approx(reference["weight"], abs=1e-6)
        assert other["loss"] == pytest.approx(reference["loss"], abs=1e-6)


def test_a_fit_behind_a_validation_alone_is_synchronised(together):
    alone, both = two_processes.topology(1, 1, CLIPS[0]), together["validated first"]
    assert both["weight"] == pytest.approx(alone["weight"], abs=1e-6)


@pytest.mark.parametrize("num_items", RAGGED)
def test_validation_over_ragged_shards_counts_every_sample_once(together, num_items):
    alone, both = two_processes.validation(num_items), together[f"validation {num_items}"]
    assert both["val/loss"] == pytest.approx(alone["val/loss"], abs=1e-12)
    assert both["val/mae"] == pytest.approx(alone["val/mae"], abs=1e-12)
    assert both["predicted"] == alone["predicted"] == list(range(num_items))


@pytest.mark.parametrize(("row", "updates"), SCHEDULES.items())
def test_learning_rates_on_two_processes(together, row, updates):
    result = together[f"schedule {row}"]
    assert result["rates"] == pytest.approx([0.05 * (1 - k / updates) for k in range(updates)])
    assert result["last"] == 0.0


def test_alternating_optimizers_on_two_processes(together):
    alone = two_processes.adversarial(1)
    assert together["adversarial"]["weights"] == pytest.approx(alone["weights"], abs=1e-9)


def test_resume_on_two_processes_is_bit_identical(together):
    assert together["part 5"]["updates"] == 5
    assert together["part 12"] == together["whole"]
    assert together["whole"]["updates"] == 12


def test_resume_of_asynchronous_saves_on_two_processes_is_bit_identical(together):
    assert together["behind 5"]["updates"] == 5
    assert together["behind 12"] == together["whole"]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_folder_that_one_rank_could_not_write_is_published_by_none(together, asynchronous):
    result = together[f"full {asynchronous}"]
    assert result["folders"] == ["last", "step_00000001", "step_00000004"]
    assert result["last"] == [[1, 4], [1, 4]]


@pytest.mark.parametrize("way", ["two to one", "one to two"])
def test_a_checkpoint_goes_on_with_another_number_of_processes(together, way):
    whole = two_processes.elastic(str(together["folder"] / f"whole {way}"), 1, -1)
    folder = str(together["folder"] / way)
    resumed = together["one to two"] if way == "one to two" else two_processes.elastic(folder, 1, -1)
    assert resumed["updates"] == whole["updates"] == 20
    assert resumed["weight"] == pytest.approx(whole["weight"], abs=1e-12)
    assert [step for step, _ in resumed["losses"]] == [step for step, _ in whole["losses"]]
    assert [loss for _, loss in resumed["losses"]] == pytest.approx([loss for _, loss in whole["losses"]], abs=1e-12)


def test_one_ranks_wish_to_stop_is_heeded_by_both_at_the_next_log(together):
    assert together["one rank"]["updates"] == 5


def test_a_signal_to_one_rank_ends_both_at_the_same_update_and_saved(together):
    """Within the seconds between two agreements, however far the next log is."""
    result = together["signal"]
    assert result["code"] == 138
    assert 3 < result["updates"] < 600
    assert result["saved"] == f"step_{result['updates']:08d}"


def test_a_batch_that_is_not_finite_on_one_rank_is_decided_on_by_both(together):
    assert all(together[policy]["same"] for policy in ("raise", "skip", "rollback"))
    assert "train/loss is nan at update 4" in together["raise"]["error"]
    skip, rollback = together["skip"], together["rollback"]
    assert (skip["updates"], skip["count"], skip["finite"]) == (4, 1, True)
    assert skip["files"] == ["step_00000002_batch_2_rank_1.pt"]
    assert together["raise"]["files"] == rollback["files"] == ["step_00000004_batch_2_rank_1.pt"]
    assert (rollback["updates"], rollback["count"], rollback["finite"]) == (2, 1, True)


def test_a_spike_on_one_rank_is_decided_on_by_both(together):
    """The loss that is judged is the mean over both: rank 0 sees nothing unusual by itself."""
    assert all(together[f"spike {policy}"]["same"] for policy in ("raise", "skip", "rollback"))
    stopped, skip, rollback = (together[f"spike {policy}"] for policy in ("raise", "skip", "rollback"))
    assert "at update 18, more than 10 times its level" in stopped["error"]
    assert (skip["updates"], skip["count"], skip["files"]) == (20, 1, ["step_00000017_batch_17_rank_1.pt"])
    assert (rollback["updates"], rollback["count"]) == (17, 1)
    assert stopped["files"] == rollback["files"] == ["step_00000020_batch_17_rank_1.pt"]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_one_rank_takes_its_batches_in_parts_and_the_update_is_that_of_whole_ones_under_ddp(together, accumulation):
    whole, parts = together[f"splits {accumulation} 4"], together[f"splits {accumulation} 1"]
    assert parts["weight"] == pytest.approx(whole["weight"], abs=1e-12)
    assert parts["loss"] == pytest.approx(whole["loss"], abs=1e-12)
    assert parts["updates"] == whole["updates"]
    assert (whole["sizes"], parts["sizes"]) == ([4, 4], [4, 1])


def test_a_signal_in_a_validation_stops_both_ranks_at_the_same_batch_and_it_is_done_again(together):
    assert (together["stopped"]["code"], together["stopped"]["updates"]) == (143, 5)
    assert together["stopped"]["batches"] == [2, 2]
    undisturbed, again = together["undisturbed"], together["done again"]
    assert again["batches"][0] == undisturbed["batches"][0]
    assert (again["weight"], again["metrics"]) == (undisturbed["weight"], undisturbed["metrics"])


def test_frozen_parts_thaw_under_ddp(together):
    assert together["thaw"] == {"frozen_until_then": [True], "trained_after": True}


def test_unused_parameters_are_named(together):
    assert "take no part in the loss: spare.weight, spare.bias." in together["unused"]["error"]
    assert "trainer.find_unused_parameters=true" in together["unused"]["error"]


def test_processes_that_do_not_see_each_other_are_refused(tmp_path):
    (tmp_path / "tasks.json").write_text(json.dumps({"validation": ("validation", [8])}))
    arguments = ("-m", "tests.trainer.two_processes", str(tmp_path / "tasks.json"), str(tmp_path / "out.json"))
    done = torchrun(*arguments, CUDA_VISIBLE_DEVICES="")
    assert done.returncode != 0
    assert "2 processes were launched but 1 found each other" in done.stderr

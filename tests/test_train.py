"""train.py from the prompt, in processes of its own, on a config folder of one's own and the smallest of tasks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

REPOSITORY = Path(__file__).resolve().parent.parent

CONF = """
defaults:
  - trainer: default
  - optimizer: sgd
  - lr_scheduler: linear
  - callbacks: default
  - data@train_dataloader.dataset: train
  - _self_
model: {_target_: tests.trainer.tiny.linear}
loss_fn: null
tracker: null
train_dataloader: {_target_: torch.utils.data.DataLoader, batch_size: 4, shuffle: true}
val_dataloader: {_target_: torch.utils.data.DataLoader, batch_size: 4, dataset: "${train_dataloader.dataset}"}
trainer: {_target_: tests.trainer.tiny.VectorTrainer}
callbacks: {progress: null, throughput: null, checkpoint: {monitor: val/loss}}
"""


@pytest.fixture
def workplace(tmp_path):
    """A folder far from the repository, with a config folder in it."""
    (tmp_path / "conf" / "data").mkdir(parents=True)
    (tmp_path / "conf" / "conf.yaml").write_text(CONF)
    (tmp_path / "conf" / "data" / "train.yaml").write_text("_target_: tests.trainer.tiny.Vectors\nnum_items: 16\n")
    return tmp_path


def train(folder, *arguments, launcher=(sys.executable,), **environment):
    command = [*launcher, str(REPOSITORY / "train.py"), *arguments]
    known = {"PYTHONPATH": str(REPOSITORY), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return subprocess.run(
        command, cwd=folder, env=os.environ | known | environment, capture_output=True, text=True, timeout=300
    )


OWN = ("--config-path", "conf", "--config-name", "conf")


@pytest.mark.slow
def test_a_config_folder_of_ones_own_trains_from_any_folder(workplace):
    launch = ("accelerate", "launch", "--cpu")
    done = train(workplace, *OWN, "epochs=2", "exp_dir=run", "++optimizer.lr=0.01", launcher=launch)
    assert done.returncode == 0, done.stderr
    last = done.stdout.strip().splitlines()[-1]
    assert last.startswith("val/loss ")
    assert last.endswith("| run | next: python inference.py exp_dir=run")
    run = workplace / "run"
    assert OmegaConf.load(run / "config.yaml").trainer.epochs == 2
    assert (run / "overrides.txt").read_text().splitlines() == ["++epochs=2", "++exp_dir=run", "++optimizer.lr=0.01"]
    assert json.loads((run / "environment.json").read_text())["packages"]["torch"]
    assert (run / "checkpoints" / "best" / "model.safetensors").is_file()

    again = train(workplace, *OWN, "exp_dir=run")
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr.startswith(f"error: exp_dir: {run} holds a run already")


@pytest.mark.slow
def test_a_run_begins_with_pretrained_weights_and_says_what_it_took(workplace):
    assert train(workplace, *OWN, "max_steps=1", "exp_dir=run").returncode == 0
    pretrained = "pretrained={path: run/checkpoints/last, exclude: [bias]}"
    done = train(workplace, *OWN, "max_steps=1", "exp_dir=other", pretrained)
    assert done.returncode == 0, done.stderr
    assert "weights from run/checkpoints/last/model.safetensors: 1 of the model's 2 tensors" in done.stderr
    assert "  keep their fresh values: bias" in done.stderr
    again = train(workplace, *OWN, "max_steps=1", "exp_dir=third", "pretrained=run")
    assert again.stderr.startswith("error: pretrained: run is no checkpoint, it has no manifest.json")


@pytest.mark.slow
def test_a_run_begins_with_the_rows_of_another_vocabulary(workplace):
    """The output layer has one row; its symbol is kept, or it is not."""
    assert train(workplace, *OWN, "max_steps=1", "exp_dir=run").returncode == 0
    (workplace / "old.txt").write_text("sum\n")
    told = []
    for symbol in ("sum", "mean"):
        remap = f"{{weight: {{old: old.txt, new: [{symbol}]}}}}"
        pretrained = f"pretrained={{path: run/checkpoints/last, exclude: [bias], remap_rows: {remap}}}"
        done = train(workplace, *OWN, "max_steps=1", f"exp_dir={symbol}", pretrained)
        assert done.returncode == 0, done.stderr
        told += [line for line in done.stderr.splitlines() if "rows of" in line]
    assert told == [
        "  rows of weight: 1 symbols keep their rows",
        "  rows of weight: 0 symbols keep their rows; 1 are new (mean); 1 are gone (sum)",
    ]
    wrong = train(workplace, *OWN, "exp_dir=other", pretrained.replace("old: old.txt", "old: [a, b]"))
    assert wrong.returncode == 2
    sentence = "error: pretrained.remap_rows.weight: weight: the old vocabulary has 2 symbols, its tensor 1 rows"
    assert wrong.stderr.startswith(sentence)


@pytest.mark.slow
def test_two_processes_share_one_folder(workplace):
    launch = ("torchrun", "--nproc_per_node", "2")
    done = train(workplace, *OWN, "epochs=1", launcher=launch, ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("next: python inference.py") == 1
    assert len(list((workplace / "experiments" / "conf").iterdir())) == 1


@pytest.mark.slow
def test_copies_that_do_not_know_each_other_are_refused_once_and_early(workplace):
    done = train(
        workplace,
        *OWN,
        launcher=("torchrun", "--nproc_per_node", "2"),
        ACCELERATE_USE_CPU="false",
        CUDA_VISIBLE_DEVICES="",
    )
    assert done.returncode != 0
    assert done.stderr.count("2 processes were launched but 1 found each other") == 1
    assert not (workplace / "experiments").exists()


@pytest.mark.slow
def test_validate_only_counts_and_builds_nothing(workplace):
    done = train(workplace, *OWN, "validate_only=true")
    assert (done.returncode, done.stdout) == (0, "config is valid: 11 targets\n"), done.stderr
    assert not (workplace / "experiments").exists()


@pytest.mark.slow
def test_all_mistakes_are_told_at_once_before_anything_is_built(workplace):
    done = train(
        workplace, *OWN, "+model.sed=1", "optimizer.lr=fast", "trainer._target_=tests.trainer.tiny.VectorTrain"
    )
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: model.sed: unknown argument of tests.trainer.tiny.linear (did you mean 'seed'?)",
        "optimizer.lr: expected a number, got 'fast'",
        "trainer._target_: tests.trainer.tiny.VectorTrain: no such name (did you mean 'VectorTrainer'?)",
    ]

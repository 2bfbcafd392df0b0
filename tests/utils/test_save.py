"""Where a run lies, and what it leaves there before its first step."""

import json
import subprocess
from datetime import datetime
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from utils.errors import UserError
from utils.save import choose_exp_dir, environment, fingerprints, git_state, prepare_exp_dir, resolve_exp_dir, save_run
from utils.stored_run import load_run

NOW = datetime(2026, 1, 2, 3, 4, 5)


def settings(**changes):
    keys = {"exp_dir": None, "resume_from_checkpoint": None, "auto_resume": False, "overwrite": False}
    return OmegaConf.create(keys | changes)


def occupy(exp_dir: Path) -> Path:
    (exp_dir / "checkpoints" / "step_00000010").mkdir(parents=True)
    (exp_dir / "metrics.jsonl").write_text("{}\n")
    (exp_dir / "notes.md").write_text("mine")
    return exp_dir


def test_the_default_folder_has_the_experiment_and_the_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = tmp_path / "experiments" / "tagging" / "digits" / "2026-01-02_03-04-05"
    assert choose_exp_dir(settings(), "tagging/digits", NOW) == expected


def test_a_given_folder_is_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert choose_exp_dir(settings(exp_dir="runs/a"), "x", NOW) == tmp_path / "runs" / "a"


def test_auto_resume_needs_a_folder_to_go_on_in():
    with pytest.raises(UserError, match="auto_resume: name the folder"):
        choose_exp_dir(settings(auto_resume=True), "x", NOW)


def test_an_occupied_folder_is_refused_with_the_three_remedies(tmp_path):
    occupy(tmp_path)
    with pytest.raises(UserError, match=r"auto_resume=true.*exp_dir=\.\.\..*overwrite=true"):
        prepare_exp_dir(tmp_path, settings())


@pytest.mark.parametrize("remedy", [{"auto_resume": True}, {"resume_from_checkpoint": "latest"}])
def test_a_run_to_go_on_with_is_left_as_it_is(tmp_path, remedy):
    occupy(tmp_path)
    prepare_exp_dir(tmp_path, settings(overwrite=True, **remedy))
    assert (tmp_path / "checkpoints" / "step_00000010").is_dir()
    assert (tmp_path / "metrics.jsonl").is_file()


def test_overwrite_clears_the_run_and_keeps_other_files(tmp_path):
    occupy(tmp_path)
    prepare_exp_dir(tmp_path, settings(overwrite=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "notes.md"]


def test_a_folder_without_checkpoints_is_free(tmp_path):
    (tmp_path / "config.yaml").write_text("of a run that failed at once")
    prepare_exp_dir(tmp_path, settings())


def test_a_file_in_the_way_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"exp_dir: can not write to .*file"):
        resolve_exp_dir(settings(exp_dir=str(tmp_path / "file")), "x")


def test_save_run_writes_config_overrides_and_environment(tmp_path):
    config = OmegaConf.create({"seed": 3, "twice": "${seed}"})
    save_run(config, tmp_path, ["seed=3"], {"train_dataloader": {"sha256": "ab"}})
    assert OmegaConf.load(tmp_path / "config.yaml") == {"seed": 3, "twice": 3}
    assert (tmp_path / "overrides.txt").read_text() == "seed=3\n"
    saved = json.loads((tmp_path / "environment.json").read_text())
    assert saved["data"] == {"train_dataloader": {"sha256": "ab"}}
    assert "torch" in saved["packages"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "environment.json", "overrides.txt"]


def test_environment_tells_the_command_and_the_versions():
    assert {"command", "python", "packages", "git", "time", "platform"} == set(environment())


def test_git_state_knows_a_clean_from_a_dirty_tree(tmp_path):
    assert git_state(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e@e"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "one"], check=True)
    state = git_state(tmp_path)
    assert state is not None
    assert (len(state["commit"]), state["dirty"]) == (40, False)
    (tmp_path / "new").write_text("")
    assert git_state(tmp_path) == {**state, "dirty": True}


def test_fingerprints_are_asked_of_datasets_that_offer_them():
    class Dataset:
        def fingerprint(self):
            return "abc"

    class Loader:
        def __init__(self, dataset):
            self.dataset = dataset

    loaders = {"train": Loader(Dataset()), "val": {"clean": Loader(Dataset()), "plain": Loader([1])}, "test": None}
    assert fingerprints(loaders) == {"train": "abc", "val.clean": "abc"}


def test_artefacts_are_copied_into_the_run_and_used_from_there(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    vocabulary = tmp_path / "elsewhere/words.json"
    vocabulary.write_text('["one", "two"]')
    model = {"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 3, "file": str(vocabulary)}
    config = OmegaConf.create({"artefacts": {"words": str(vocabulary), "none": None}, "model": model, "list": ["a"]})
    save_run(config, tmp_path, (), {})
    vocabulary.unlink()
    run = load_run(str(tmp_path))
    assert run.config.model.file == str(tmp_path / "artefacts/words.json")
    assert Path(run.config.model.file).read_text() == '["one", "two"]'
    assert run.config.list == ["a"]
    with pytest.raises(UserError, match=r"artefacts.words: can not copy .*words.json"):
        save_run(config, tmp_path / "again", (), {})

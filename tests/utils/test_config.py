"""The way in from the prompt: what is typed, and the one sentence for what is typed wrongly."""

import sys

import pytest
from omegaconf import OmegaConf
from omegaconf.errors import InterpolationResolutionError

from tests.utils.targets import breaks
from utils.config import hydra_main, register_omegaconf_resolvers
from utils.errors import UserError

ENTRY = """
defaults:
  - model: tagger
  - _self_
  - experiment: null
seed: 1
epochs: 5
train_dataloader: {batch_size: 4, num_workers: 0}
pointer: ${model.backbone}
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A config tree of our own, with one nested group, and a folder of a user's beside it."""
    files = {
        "home/default.yaml": ENTRY,
        "home/model/tagger.yaml": "defaults: [backbone: cnn, _self_]\nnum_classes: 2\n",
        "home/model/backbone/cnn.yaml": "channels: 8\n",
        "home/model/backbone/dit.yaml": "width: 16\n",
        "home/experiment/tagging/digits.yaml": "# @package _global_\nseed: 9\n",
        "user/conf.yaml": "defaults:\n  - data@train_dataloader.dataset.datasets: train\n  - _self_\nown: 1\n",
        "user/data/train.yaml": "first: {path: a}\n",
        "user/broken.yaml": "a: [1\nb: 2\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("utils.compose.CONFIGS", tmp_path / "home")
    return tmp_path / "home"


@pytest.fixture
def run(home, monkeypatch):
    """Call an entry point with arguments; returns the config its body got, None where it was not called."""

    def call(*arguments, body=lambda config: None):
        seen = []

        @hydra_main(config_path=str(home), config_name="default")
        def main(config):
            seen.append(config)
            body(config)

        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        main()
        return seen[0] if seen else None

    return call


@pytest.fixture
def error_of(run, capsys):
    """The lines on stderr of a call that must end with exit code 2."""

    def call(*arguments, **options):
        with pytest.raises(SystemExit) as caught:
            run(*arguments, **options)
        assert caught.value.code == 2
        return capsys.readouterr().err.strip()

    return call


def test_the_grammar_of_overrides_is_hydras(run):
    config = run(
        "epochs=9", "model/backbone=dit", "~seed", "+model.new=1", "++model.new=2", "experiment=tagging/digits"
    )
    assert config == {
        "epochs": 9,
        "train_dataloader": {"batch_size": 4, "num_workers": 0},
        "model": {"backbone": {"width": 16}, "num_classes": 2, "new": 2},
        "pointer": {"width": 16},
    }


def test_a_group_can_be_left_out(run):
    assert run("model/backbone=null").model == {"backbone": None, "num_classes": 2}


def test_a_mapping_of_nothing_but_new_keys_may_be_added(run):
    config = run("+data.digits.test.max_samples=3", "+data.digits.test.channel=0", "+pointers={a: 1}")
    assert config.data == {"digits": {"test": {"max_samples": 3, "channel": 0}}}


def test_a_config_folder_of_ones_own_keeps_the_keys_every_run_has(run, home):
    config = run("--config-path", "user", "--config-name", "conf", "epochs=7", "own=2")
    assert config.train_dataloader.dataset.datasets.first.path == "a"
    assert (config.epochs, config.seed, config.own) == (7, 1, 2)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        (
            "train_dataloader.batchsize=12",
            "train_dataloader.batchsize: no such key; did you mean 'train_dataloader.batch_size'? "
            "(a new key is added with +train_dataloader.batchsize=12)",
        ),
        ("epoch=3", "epoch: no such key; did you mean 'epochs'? (a new key is added with +epoch=3)"),
        ("channels=3",
         "channels: no such key; did you mean 'model.backbone.channels'? (a new key is added with +channels=3)"),
        ("zzz=3", "zzz: no such key; a new key is added with +zzz=3"),
        ("pointer.channels=3", "pointer.channels: 'pointer' only points to 'model.backbone'; "
                               "override 'model.backbone.channels' instead"),
        ("+pointer.new=3",
         "+pointer.new: 'pointer' only points to 'model.backbone'; override 'model.backbone.new' instead"),
        ("model/backbone=cnnn", "model/backbone: no option 'cnnn' (did you mean 'cnn'?); there is cnn, dit"),
        ("experiment=tagging/digitz",
         "experiment: no option 'tagging/digitz' (did you mean 'tagging/digits'?); there is tagging/digits"),
        ("model/bakbone=cnn", "model/bakbone: no such group (did you mean 'model/backbone'?)"),
        ("+model=tagger", "+model: an option of this group is chosen already; change it with model=tagger"),
        ("+epochs=3", "+epochs: the key exists already; change it with epochs=3"),
        ("~sed", "~sed: no such key, nothing to remove (did you mean 'seed'?)"),
        ("epochs=[1,", "epochs=[1,: not in Hydra's grammar, quote the value: 'epochs=\"[1,\"'"),
    ],
)  # fmt: skip
def test_a_mistyped_override_is_one_sentence(error_of, override, sentence):
    assert error_of(override) == f"error: {sentence}"


def test_all_mistyped_overrides_are_told_together(error_of):
    text = error_of("epoch=3", "model.num_class=1")
    assert [line.split(":")[0] for line in text.removeprefix("error: ").splitlines()] == ["epoch", "model.num_class"]


def test_a_wrong_config_path_or_name_is_one_sentence(error_of, home):
    assert error_of("--config-path", "nowhere") == f"error: --config-path: there is no folder {home.parent / 'nowhere'}"
    assert error_of("--config-path=user", "--config-name=conff") == (
        f"error: --config-name: no conff.yaml in {home.parent / 'user'} (did you mean 'conf'?)"
    )


def test_yaml_that_can_not_be_read_is_named_with_its_line(error_of, home):
    text = error_of("--config-path", "user", "--config-name", "broken")
    assert text.startswith(f"error: {home.parent / 'user' / 'broken.yaml'}, line 2, column 2: not valid YAML: ")


def test_a_user_error_of_the_body_is_one_sentence(error_of):
    def body(config):
        raise UserError("the folder is full")

    assert error_of(body=body) == "error: the folder is full"


def test_a_user_error_inside_instantiate_keeps_its_sentence_and_gains_its_key(error_of):
    from hydra.utils import instantiate

    def body(config):
        instantiate(OmegaConf.create({"data": {"train": {"_target_": "tests.utils.targets.refuses"}}}))

    assert error_of(body=body) == "error: data.train: the corpus is not there, set data_root=DIR"


def test_what_a_library_refuses_is_one_sentence_with_its_key(error_of):
    from hydra.utils import instantiate

    def body(config):
        node = {"train_dataloader": {"_target_": "torch.utils.data.DataLoader", "dataset": [1], "batch_size": -1}}
        instantiate(OmegaConf.create(node))

    assert error_of(body=body).startswith("error: train_dataloader: batch_size should be a positive integer value")


def test_a_bug_keeps_its_traceback(run):
    with pytest.raises(RuntimeError, match="a bug"):
        run(body=lambda config: breaks())


def test_hydras_own_flags_still_work(run, capsys, error_of):
    seen = []
    run("--multirun", "epochs=1,2", body=lambda config: seen.append(config.epochs))
    assert seen == [1, 2]
    assert "did you mean 'epochs'" in error_of("--cfg", "job", "epoch=1")


@pytest.mark.parametrize("arguments", [("epochs=7", "--cfg", "job"), ("--cfg", "job", "epochs=7")])
def test_a_flag_stands_anywhere(run, capsys, arguments):
    run(*arguments)
    assert "epochs: 7\n" in capsys.readouterr().out


def test_folders_are_classes_that_others_point_to(tmp_path):
    register_omegaconf_resolvers()
    for name in ("rain", "dog", ".hidden"):
        (tmp_path / name).mkdir()
    config = OmegaConf.create(
        {"dir": str(tmp_path), "labels": {"sound": "${sub_folders:${dir}}"}, "same": "${labels}",
         "counts": "${class_counts:${labels}}"}
    )  # fmt: skip
    OmegaConf.resolve(config)
    assert config.same == {"sound": ["dog", "rain"]}
    assert config.counts == {"sound": 2}
    for folder, sentence in ((None, "name a folder"), (str(tmp_path / "dog"), "holds no folders")):
        config = OmegaConf.create({"dir": folder, "classes": "${sub_folders:${dir}}"})
        with pytest.raises(InterpolationResolutionError, match=sentence):
            _ = config.classes


def test_resolvers_compute_and_leave_others_alone():
    OmegaConf.register_new_resolver("someone_elses", lambda: 7, replace=True)
    register_omegaconf_resolvers()
    register_omegaconf_resolvers()
    config = OmegaConf.create(
        {
            "words": ["a", "b", "c"],
            "classes": {"word": "${words}", "speaker": ["x"]},
            "n": "${len:${words}}",
            "sum": "${add:1,2,${n}}",
            "product": "${multiply:2,${n},0.5}",
            "half": "${divide:1,2}",
            "counts": "${class_counts:${classes}}",
            "other": "${someone_elses:}",
        }
    )
    assert (config.n, config.sum, config.product, config.half, config.other) == (3, 6, 3.0, 0.5, 7)
    assert config.counts == {"word": 3, "speaker": 1}


def test_corpus_dir_depends_on_every_key_and_on_nothing_else(tmp_path):
    register_omegaconf_resolvers()

    def folder(**keys):
        config = {"cache_dir": str(tmp_path), "seed": 0, "words": {"b": [1], "a": 2}, **keys}
        return OmegaConf.create(config | {"dir": "${corpus_dir:spoken,${words},${seed}}"}).dir

    first = folder()
    assert first == folder(words={"a": 2, "b": [1]}, unrelated=3)
    assert first.startswith(f"{tmp_path}/spoken-")
    assert len(first.rpartition("-")[2]) == 8
    assert len({first, folder(seed=1), folder(words={"b": [2], "a": 2})}) == 3

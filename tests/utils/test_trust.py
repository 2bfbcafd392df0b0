"""Configs from elsewhere build only what the caller's list allows, and nothing happens before that is known."""

import sys

import pytest
from omegaconf import OmegaConf

from utils.errors import UserError
from utils.trust import check_targets, instantiate_untrusted


def linear(**more):
    return {"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 3, **more}


def test_builds_what_is_allowed():
    config = OmegaConf.create(
        {"size": 2, "layers": [linear(in_features="${size}")], "o": {"_target_": "torch.nn.ReLU"}}
    )
    built = instantiate_untrusted(config)
    assert built["layers"][0].in_features == 2
    assert type(built["o"]).__name__ == "ReLU"


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "builtins.exec",
        "subprocess.Popen",
        "hydra.utils.get_method",
        "hydra.utils.instantiate",
        "torch.load",
        "torch.hub.load",
        "torch.utils.data.dataloader.DataLoader",
        "componentsx.evil.Run",
        "components",
        "components.*",
        "torch.nn.Module.__init__",
        "torch.nn..Linear",
        "transformers.dynamic_module_utils.get_class_from_dynamic_module",
        "diffusers.utils.dynamic_modules_utils.get_class_from_dynamic_module",
        None,
        3,
    ],
)
def test_refuses_a_target_that_is_not_on_the_list(target):
    config = {"model": {"layers": [linear(), {"deep": {"_target_": target}}]}}
    with pytest.raises(
        UserError, match=r"^model\.layers\.1\.deep\._target_: .* is not among what a stored config may build"
    ):
        check_targets(config)


@pytest.mark.parametrize(
    "config",
    [
        {"_target_": "os.mkdir", "path": "x"},
        {"a": {"_target_": "os.mkdir", "_partial_": True, "path": "x"}},
        {"a": {"_target_": "hydra.utils.get_method", "path": "os.mkdir"}},
        {"a": [{"_target_": "torch.nn.Sequential", "_args_": [{"_target_": "os.mkdir", "_args_": ["x"]}]}]},
    ],
)
def test_refuses_it_on_top_as_a_partial_by_a_detour_and_as_an_argument_and_nothing_has_run(
    tmp_path, monkeypatch, config
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"_target_: .* is not among what a stored config may build"):
        instantiate_untrusted(OmegaConf.create(config))
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "target",
    [
        "torch.nn.modules.module.os.system",
        "torch.nn.functional.importlib.import_module",
        "torch.nn.modules.module.partial",
    ],
)
def test_refuses_a_path_that_leaves_its_package(target):
    with pytest.raises(UserError, match=r"^a\._target_: "):
        check_targets({"a": {"_target_": target}})


def test_nothing_is_imported_or_run_before_all_targets_were_checked(tmp_path, monkeypatch):
    package = tmp_path / "components_of_a_stranger"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    allowed = ("components_of_a_stranger.*", "torch.nn.*")
    config = OmegaConf.create(
        {"a": {"_target_": "components_of_a_stranger.Run"}, "b": {"_target_": "os.mkdir", "path": "x"}}
    )
    with pytest.raises(UserError, match=r"^b\._target_"):
        instantiate_untrusted(config, allowed)
    assert "components_of_a_stranger" not in sys.modules


def test_refuses_targets_behind_interpolations_even_escaped_ones():
    with pytest.raises(UserError, match=r"^a\._target_"):
        instantiate_untrusted(OmegaConf.create({"name": "os.system", "a": {"_target_": "${name}"}}))
    escaped = r"\${oc.create:'{_target_: os.getcwd}'}"
    with pytest.raises(UserError, match=r"^a: an interpolation is left"):
        instantiate_untrusted(OmegaConf.create({"a": escaped}))


@pytest.mark.parametrize("argument", ["trust_remote_code", "custom_pipeline"])
def test_refuses_arguments_by_which_a_library_runs_foreign_code(argument):
    config = OmegaConf.create({"m": {"_target_": "transformers.AutoModel.from_pretrained", argument: True}})
    with pytest.raises(UserError, match=rf"^m\.{argument}: not accepted"):
        instantiate_untrusted(config)


def test_the_caller_may_widen_the_list_and_the_config_may_not():
    config = OmegaConf.create({"a": {"_target_": "collections.OrderedDict"}, "_target_whitelist_": ["collections.*"]})
    with pytest.raises(UserError):
        instantiate_untrusted(config)
    del config["_target_whitelist_"]
    assert instantiate_untrusted(config, ("collections.OrderedDict",))["a"] == {}

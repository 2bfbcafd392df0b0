"""Every YAML that is shipped composes and validates; a new file is met by a test that counts."""

from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from utils.compose import CONFIGS, Request, compose_task
from utils.config import register_omegaconf_resolvers
from utils.validate import num_targets, validate

_FOLDER = CONFIGS / "experiment"
EXPERIMENTS = sorted(path.relative_to(_FOLDER).with_suffix("").as_posix() for path in _FOLDER.rglob("*.yaml"))
NUM_EXPERIMENTS = 29

# Groups of which any one option goes with the default experiment.
FREE_GROUPS = ("optimizer", "lr_scheduler", "tracker", "debug")
NUM_FREE_OPTIONS = 14
# Those of the tagging task go with its first experiment.
TAGGING_GROUPS = ("model/frontend",)
TAGGING_OPTIONS = ("model/backbone=cnn6", "model/backbone=conv_net")
NUM_TAGGING_OPTIONS = 9
# The experiment sets a key that this pipeline has one level down.
NEEDS = dict.fromkeys(
    ("model/frontend=kaldi_fbank_lfr", "model/frontend=kaldi_fbank_cmvn"), ("~model.frontend.n_mels",)
)

WANTS = {"tagging/folder": (f"data_root={CONFIGS}",)}  # any folder that holds folders

ACCELERATE = sorted((CONFIGS / "accelerate").glob("*.yaml"))


@pytest.fixture(autouse=True)
def resolvers():
    register_omegaconf_resolvers()


def compose(*overrides):
    return compose_task(Request(CONFIGS, "default", overrides))


def options(groups):
    for group in groups:
        for path in sorted((CONFIGS / group).glob("*.yaml")):
            yield f"{group}={path.stem}"


FREE_OPTIONS = tuple(options(FREE_GROUPS))
TAGGING_OPTIONS += tuple(option for option in options(TAGGING_GROUPS) if option != "model/frontend=samples")


def test_the_default_config_is_valid_and_every_target_in_it_was_looked_at():
    config = compose()
    assert validate(config) == []
    named = [node for node in _mappings(OmegaConf.to_container(config, resolve=False)) if "_target_" in node]
    assert num_targets(config) == len(named) == 44


def _mappings(node):
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    if isinstance(node, list):
        for value in node:
            yield from _mappings(value)


def test_all_experiments_are_found():
    assert len(EXPERIMENTS) == NUM_EXPERIMENTS


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_is_valid_and_says_how_it_is_run(experiment):
    config = compose(f"experiment={experiment}", *WANTS.get(experiment, ()))
    assert validate(config) == []
    assert num_targets(config) >= 20
    head = (CONFIGS / "experiment" / f"{experiment}.yaml").read_text().splitlines()
    assert head[0] == "# @package _global_"
    assert any("train.py" in line for line in head if line.startswith("#"))


def test_every_task_has_an_experiment_for_debugging():
    assert {name.split("/")[0] for name in EXPERIMENTS} == {
        n.split("/")[0] for n in EXPERIMENTS if n.endswith("/debug")
    }


def test_all_options_of_the_free_groups_are_found():
    assert (len(FREE_OPTIONS), len(TAGGING_OPTIONS)) == (NUM_FREE_OPTIONS, NUM_TAGGING_OPTIONS)


@pytest.mark.parametrize("option", FREE_OPTIONS)
def test_an_option_goes_with_the_default(option):
    assert validate(compose(option)) == []


@pytest.mark.parametrize("option", TAGGING_OPTIONS)
def test_an_option_goes_with_tagging(option):
    assert validate(compose("experiment=tagging/spoken_words", option, *NEEDS.get(option, ()))) == []


# Options of the generator, and what they need beside.
GENERATION = {
    "model/autoencoder=patch": (),
    "model/autoencoder=oobleck_small": (),
    "model/backbone=layer_fusion_dit_small": (),
    "model/backbone=input_fusion_dit_small": (),
    "model/backbone=stable_audio_3": (),
    "model/backbone=longcat": (),
    "model/content_adapter=prefix_adapter": (),
    "model/content_adapter=cross_attn_adapter": (),
    "model/content_encoder@model.content_encoder.instruction=char": ("~model.content_encoder.instruction.vocabulary",),
}


@pytest.mark.parametrize("option", GENERATION)
def test_an_option_goes_with_the_generator(option):
    assert validate(compose(option, *GENERATION[option])) == []


def test_every_file_of_the_tree_is_part_of_some_test():
    """What is neither an entry, an experiment, an option above, nor named by these, is a file nobody composes."""
    used = {CONFIGS / "default.yaml", CONFIGS / "inference.yaml", *ACCELERATE}
    used |= {CONFIGS / "experiment" / f"{name}.yaml" for name in EXPERIMENTS}
    used |= {CONFIGS / f"{option.replace('=', '/')}.yaml" for option in FREE_OPTIONS + TAGGING_OPTIONS}
    used |= set((CONFIGS / "data_dict").glob("*.yaml"))  # tests/components/test_recipe_command.py
    used |= set((CONFIGS / "model/autoencoder").glob("*.yaml"))  # tests/components/test_autoencoders.py
    used |= set((CONFIGS / "model/content_encoder").glob("*.yaml"))  # tests/components/test_content_encoders.py
    used |= set((CONFIGS / "model/backbone").glob("*_fusion_dit_*.yaml"))  # tests/components/test_backbones.py
    used |= {CONFIGS / f"{option.replace('=', '/')}.yaml" for option in GENERATION}
    used |= set((CONFIGS / "adapt").glob("*.yaml"))  # tests/test_adapt.py
    used |= set((CONFIGS / "model/encoder").glob("*.yaml"))  # tests/components/asr_encoders
    used |= set((CONFIGS / "model/asr_head").glob("*.yaml"))  # tests/components/asr_heads, asr_paraformer
    used |= set((CONFIGS / "model/heads").glob("*.yaml"))  # tests/tasks/test_asr_prompts.py
    used |= set((CONFIGS / "decoder").glob("*.yaml"))  # tests/components/asr_heads, asr_decoding, asr_paraformer
    used |= set((CONFIGS / "tokenizer").glob("*.yaml"))  # tests/components/asr_text
    used |= set((CONFIGS / "metrics").glob("*.yaml"))  # tests/components/test_metrics_command.py
    text = "\n".join(path.read_text() for path in CONFIGS.rglob("*.yaml"))
    listed = yaml.safe_load((CONFIGS / "default.yaml").read_text())["defaults"]
    for path in sorted(set(CONFIGS.rglob("*.yaml")) - used):
        group, name = path.parent.relative_to(CONFIGS).as_posix(), path.stem
        in_default = {group: name} in listed
        in_another = f"/{group}: {name}" in text or f"{group.split('/')[-1]}: {name}" in text or f"/{group}@" in text
        in_same_folder = f"- {name}\n" in text
        assert in_default or in_another or in_same_folder, f"{path.relative_to(CONFIGS)} is composed by nothing"


def test_the_seed_commands_compose():
    config = compose(
        "model/content_adapter=prefix_adapter",
        "warmup_params.warmup_steps=500",
        "train_dataloader.batch_size=12",
        "val_dataloader.batch_size=12",
        "epochs=100",
    )
    assert validate(config) == []
    assert config.model.content_adapter._target_.endswith("PrefixAdapter")
    assert (config.trainer.warmup_steps, config.trainer.epochs) == (500, 100)
    assert (config.train_dataloader.batch_size, config.val_dataloader.batch_size) == (12, 12)


def test_groups_below_the_top_can_be_chosen_and_keys_added_removed_and_forced():
    stop = "{_target_: trainer.callbacks.EarlyStopping, monitor: val/loss}"
    config = compose("model/backbone=longcat", "~callbacks.throughput", "callbacks.summary=null",
                     "++trainer.max_time=60", f"+callbacks.stop={stop}")  # fmt: skip
    assert validate(config) == []
    assert config.model.backbone._target_.endswith("LongCatBackbone")
    assert "throughput" not in config.callbacks
    assert config.callbacks.stop.monitor == "val/loss"


def test_a_folder_of_ones_own_may_use_these_groups(tmp_path):
    conf = "defaults:\n  - data@train_dataloader.dataset.datasets: train\n  - model/backbone@net: cnn6\n  - _self_\n"
    (tmp_path / "conf.yaml").write_text(conf)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.yaml").write_text("mine: {path: a}\n")
    config = compose_task(Request(tmp_path, "conf"))
    assert config.train_dataloader.dataset.datasets == {"mine": {"path": "a"}}
    assert config.net._target_.endswith("Cnn6")


def test_accelerate_knows_its_configs():
    from accelerate.commands.config.config_args import load_config_from_file

    found = {path.stem: load_config_from_file(str(path)) for path in ACCELERATE}
    processes = {name: (config.distributed_type.value, config.num_processes) for name, config in found.items()}
    assert processes == {
        "cpu": ("NO", 1),
        "1gpu": ("NO", 1),
        "2gpus": ("MULTI_GPU", 2),
        "4gpus": ("MULTI_GPU", 4),
        "8gpus": ("MULTI_GPU", 8),
        "fsdp": ("FSDP", 8),
        "multi_node": ("MULTI_GPU", 16),
    }
    assert found["cpu"].use_cpu


@pytest.mark.parametrize("path", ACCELERATE, ids=lambda path: path.stem)
def test_an_accelerate_config_says_how_to_launch_it(path: Path):
    head = path.read_text().split("compute_environment")[0]
    assert f"--config_file configs/accelerate/{path.name}" in head

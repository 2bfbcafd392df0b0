"""Fine-tuning from the prompt: `pretrained=... adapt=lora`, resumed, run, merged; in processes of their own."""

from __future__ import annotations

import importlib.util
import sys

import pytest
import torch

from tests.test_experiments import run, train
from trainer import checkpoint as checkpoints
from utils.compose import CONFIGS, Request, compose_task
from utils.config import register_omegaconf_resolvers
from utils.validate import validate

LORA = ("adapt=lora", "adapt.patterns=[backbone.blocks.*.attention.*]", "adapt.rank=2")


@pytest.mark.parametrize("entry", [LORA, ("adapt=train_only", "adapt.patterns=[backbone.*]")])
@pytest.mark.parametrize("experiment", ["audio_generation/debug", "tagging/debug"])
def test_it_goes_with_any_task(entry, experiment):
    register_omegaconf_resolvers()
    config = compose_task(Request(CONFIGS, "default", (f"experiment={experiment}", *entry)))
    assert validate(config) == []
    assert config.adapt._target_.startswith("components.layers.")


@pytest.mark.slow
def test_a_generator_is_adapted_resumed_run_and_merged(tmp_path, monkeypatch):
    if not importlib.util.find_spec("espeakng_loader"):
        pytest.skip("the corpus is spoken by espeakng-loader")
    debug = ("experiment=audio_generation/debug", "callbacks.demonstration.num_shown=1", "callbacks.progress=null")
    first = train(tmp_path, *debug, "exp_dir=first", "max_steps=2")
    begun = "pretrained=first/checkpoints/last"
    small = "callbacks.checkpoint.only_trainable=true"
    one = train(tmp_path, *debug, "exp_dir=one", "max_steps=2", small, begun, *LORA)
    early = checkpoints.read_weights(one / "checkpoints/last/model.safetensors")
    one = train(tmp_path, *debug, "exp_dir=one", "max_steps=4", small, begun, *LORA, "auto_resume=true")
    late = checkpoints.read_weights(one / "checkpoints/last/model.safetensors")
    adapted = [
        f"backbone.blocks.{block}.attention.{layer}" for block in (0, 1) for layer in ("query", "key_value", "out")
    ]
    parts = [f"{name}.parametrizations.weight.0.{part}" for name in adapted for part in ("up", "down", "scale")]
    assert sorted(name for name in late if name.startswith("backbone")) == sorted(parts)
    assert early.keys() == late.keys()
    assert not torch.equal(early[parts[0]], late[parts[0]])

    monkeypatch.setenv("PYTHONPATH", str(CONFIGS.parent))
    merged = run(tmp_path, sys.executable, "-m", "trainer.merging", "one", "plain")
    assert merged.returncode == 0, merged.stderr
    plain = checkpoints.read_weights(tmp_path / "plain/model.safetensors")
    before = checkpoints.read_weights(first / "checkpoints/last/ema.safetensors")
    assert plain.keys() == before.keys()
    changed = [name for name in plain if name.startswith("backbone") and not torch.equal(plain[name], before[name])]
    assert sorted(changed) == sorted(f"{name}.weight" for name in adapted)

    script = str(CONFIGS.parent / "inference.py")
    wish = 'prompt="say two like anna"'
    sounds = []
    for checkpoint in ("last", "plain"):
        done = run(tmp_path, sys.executable, script, "exp_dir=one", wish, "output=two.wav", f"checkpoint={checkpoint}")
        assert done.returncode == 0, done.stderr
        sounds.append((tmp_path / "two.wav").read_bytes())
    assert sounds[0] == sounds[1]

"""From a checked config to live objects: YAML makes partials and plain objects, Python passes them on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from utils.errors import UserError
from utils.launch import process_state

# What a Trainer is made of; each is a config key by the same name, and may be null unless it is needed.
_NEEDED = ("model", "train_dataloader", "optimizer", "trainer")
_PARTS = (
    "model",
    "loss_fn",
    "train_dataloader",
    "val_dataloader",
    "test_dataloader",
    "optimizer",
    "lr_scheduler",
)
_NAMED_PARTS = {"callbacks": "callbacks", "tracker": "trackers"}


def build(config: DictConfig, key: str) -> Any:
    """The object (or partial, or mapping of these) that the node `key` describes; None where there is none."""
    node = OmegaConf.select(config, key)
    return None if node is None else instantiate(node, _convert_="all")


def build_parts(config: DictConfig) -> dict[str, Any]:
    """Everything the Trainer is given, by its argument names. The model is first: its weights depend on the seed alone.

    Raises:
        UserError: a key that no run can do without is missing.
    """
    if missing := [key for key in _NEEDED if OmegaConf.select(config, key) is None]:
        raise UserError(f"{missing[0]}: the config has none, and no run can do without")
    parts = {name: build(config, name) for name in _PARTS}
    for key, name in _NAMED_PARTS.items():
        parts[name] = {entry: part for entry, part in (build(config, key) or {}).items() if part is not None}
    return parts


def build_trainer(config: DictConfig, parts: Mapping[str, Any], exp_dir: Path) -> Any:
    """The Trainer of the config, made of `parts`."""
    hyperparameters = OmegaConf.to_container(config, resolve=True)
    return build(config, "trainer")(**parts, exp_dir=exp_dir, hyperparameters=hyperparameters)


def run_recipes(config: DictConfig) -> None:
    """Run what prepares the data: every node of `recipes`, first on one process of each machine, then on the others.

    A recipe that finds its work done returns at once.
    """
    recipes = OmegaConf.select(config, "recipes") or {}
    if not any(recipe is not None for recipe in recipes.values()):
        return
    with process_state().local_main_process_first():
        for name in recipes:
            build(config, f"recipes.{name}")


def run_name() -> str:
    """What this run is called: the experiment chosen, else the entry config."""
    hydra = HydraConfig.get()
    return str(hydra.runtime.choices.get("experiment") or hydra.job.config_name)


def run_overrides() -> list[str]:
    """The overrides of this run's command line, without those for Hydra itself."""
    return list(HydraConfig.get().overrides.task)

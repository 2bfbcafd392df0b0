"""From a config folder and overrides to one config, by Hydra's compose API."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

CONFIGS = Path(__file__).resolve().parent.parent / "configs"

COMPOSE_ERRORS = (HydraException, OmegaConfBaseException, yaml.YAMLError)


class ProjectConfigs(SearchPathPlugin):
    """Lets a config folder of one's own use the groups of ours: `defaults: [model: tagger]`."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append("ostinato", f"file://{CONFIGS}")


def register_search_path() -> None:
    """Let Hydra look into our configs/ behind the folder it is given."""
    Plugins.instance().register(ProjectConfigs)


@dataclass(frozen=True)
class Request:
    """What is to be composed: the entry `name`.yaml in `directory`, and the overrides of the prompt.

    `more_keys`: keys that may be overridden though the entry does not have them.
    """

    directory: Path
    name: str
    overrides: tuple[str, ...] = ()
    more_keys: tuple[str, ...] = ()

    @property
    def search_path(self) -> tuple[Path, ...]:
        """The folders in which groups are looked up, first come first served."""
        return (self.directory,) if self.directory == CONFIGS else (self.directory, CONFIGS)

    def with_overrides(self, overrides: Sequence[str]) -> Request:
        return replace(self, overrides=tuple(overrides))

    def compose(self) -> DictConfig:
        """The composed config with its `hydra` node.

        Raises:
            COMPOSE_ERRORS: what `utils.compose_errors.explain` puts into words.
        """
        register_search_path()
        GlobalHydra.instance().clear()
        nulled = [item for item in self.overrides if self._is_nulled_group(item)]
        overrides = [f"~{item.removesuffix('=null')}" if item in nulled else item for item in self.overrides]
        with initialize_config_dir(str(self.directory), version_base="1.3", job_name=self.name):
            config = compose(self.name, overrides=overrides, return_hydra_config=True)
        with open_dict(config):
            for item in nulled:
                OmegaConf.update(config, item.removesuffix("=null").replace("/", "."), None)
        return config

    def _is_nulled_group(self, override: str) -> bool:
        """`tracker=null` is what one types to be without; Hydra wants `~tracker`, and then there is no such key."""
        name, _, value = override.partition("=")
        return value == "null" and any((folder / name).is_dir() for folder in self.search_path)


def compose_task(request: Request) -> DictConfig:
    """The composed config without its `hydra` node, of which `HydraConfig` then knows. Raises as `Request.compose`."""
    config = request.compose()
    HydraConfig.instance().set_config(config)
    with open_dict(config):
        del config["hydra"]
    return config


def entry_keys(directory: Path, name: str) -> DictConfig:
    """The plain keys of an entry config: what every run has, without the groups it names."""
    entry = OmegaConf.load(directory / f"{name}.yaml")
    assert isinstance(entry, DictConfig)
    return OmegaConf.masked_copy(entry, [str(key) for key in entry if key not in ("defaults", "hydra")])


def declare(request: Request, entry: DictConfig) -> Request:
    """For a config of one's own, which need not repeat the keys of `entry`: `epochs=3` becomes `++epochs=3`."""
    keys = tuple(dotted_keys(entry))
    overrides = (f"++{item}" if item.partition("=")[0] in keys else item for item in request.overrides)
    return replace(request, overrides=tuple(overrides), more_keys=keys)


def dotted_keys(config: DictConfig) -> list[str]:
    """Every key of `config`, nested ones dotted, list indices included; pointers are not followed."""
    keys: list[str] = []

    def collect(node: object, path: str) -> None:
        if isinstance(node, dict):
            children = [(str(key), value) for key, value in node.items()]
        elif isinstance(node, list):
            children = [(str(index), value) for index, value in enumerate(node)]
        else:
            return
        for key, value in children:
            keys.append(f"{path}.{key}" if path else key)
            collect(value, keys[-1])

    collect(OmegaConf.to_container(config, resolve=False), "")
    return keys

"""A run that lies in a folder: its config, read as data, and the datasets it can be evaluated on."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from utils.compose import COMPOSE_ERRORS, CONFIGS, Request
from utils.compose_errors import explain
from utils.errors import UserError
from utils.names import did_you_mean
from utils.trust import check_targets, instantiate_untrusted
from utils.validate import check_or_raise

_LARGEST_CONFIG = 4 * 2**20  # bytes


@dataclass(frozen=True)
class StoredRun:
    """`config` is what the run was built from; nothing of it is built or imported by reading it."""

    exp_dir: Path
    config: DictConfig

    @property
    def checkpoint_dir(self) -> Path:
        return self.exp_dir / "checkpoints"

    def with_settings(self, key: str, changes: DictConfig) -> StoredRun:
        """The same run with other values under `key`, `infer_args`, say; nulls change nothing.

        Raises:
            UserError: the run has no such setting.
        """
        changes = OmegaConf.masked_copy(changes, [str(name) for name, value in changes.items() if value is not None])
        if not changes:
            return self
        known = self.config.get(key) or {}
        for name in map(str, changes):
            if name not in known:
                raise UserError(f"{key}.{name}: the run has no such setting{did_you_mean(name, list(known))}")
        config = deepcopy(self.config)
        config[key] = OmegaConf.merge(known, changes)
        return StoredRun(self.exp_dir, config)

    def build(self, key: str) -> Any:
        """The object that the node `key` describes.

        Raises:
            UserError: there is no such node, it does not fit the code, or it names what may not be built.
        """
        if self.config.get(key) is None:
            raise UserError(f"{key}: {self.exp_dir / 'config.yaml'} has none")
        node = OmegaConf.create({key: OmegaConf.to_container(self.config[key], resolve=True)})
        check_targets(OmegaConf.to_container(node))
        check_or_raise(node)
        return instantiate_untrusted(node)[key]

    def default_checkpoint(self) -> str:
        """The best where the run kept one, else the last."""
        return "best" if (self.checkpoint_dir / "best").exists() else "last"


@dataclass(frozen=True)
class Evaluation:
    """A set to run the model on: its loader's config, and the recipe's where its corpus may still have to be made."""

    name: str
    loader: DictConfig
    recipe: DictConfig | None = None


def load_run(exp_dir: str | None) -> StoredRun:
    """Read a run's folder; None for the newest under `experiments/`.

    Raises:
        UserError: there is no such folder, or it holds no readable run.
    """
    folder = Path(exp_dir).expanduser() if exp_dir is not None else _newest(Path("experiments"))
    if not folder.is_dir():
        raise UserError(f"exp_dir: there is no folder {folder}")
    file = folder / "config.yaml"
    try:
        config = OmegaConf.create(_read_modestly(file))
    except FileNotFoundError:
        raise UserError(f"exp_dir: {folder} holds no run, it has no config.yaml") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"exp_dir: can not read {file}: {' '.join(str(error).split())}") from None
    if not isinstance(config, DictConfig):
        raise UserError(f"exp_dir: {file} is no config")
    return StoredRun(folder, config)


def _read_modestly(file: Path) -> str:
    """The text of a config that we may have written: of a size we write, and without YAML's aliases.

    A few lines of aliases of aliases unfold into more than a machine holds.
    """
    if file.stat().st_size > _LARGEST_CONFIG:
        raise UserError(f"exp_dir: {file} is larger than any config ({file.stat().st_size} bytes)")
    text = file.read_text()
    if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
        raise UserError(f"exp_dir: {file} uses YAML aliases, which no config of ours does")
    return text


def _newest(experiments: Path) -> Path:
    runs = [path.parent for path in experiments.rglob("config.yaml") if (path.parent / "checkpoints").is_dir()]
    if not runs:
        raise UserError("exp_dir: name the folder of a run with exp_dir=..., there is none under experiments/")
    return max(runs, key=lambda run: (run / "config.yaml").stat().st_mtime)


def evaluations(run: StoredRun, request: DictConfig) -> list[Evaluation]:
    """What to evaluate, checked but not built.

    Args:
        run: the run.
        request: `data_dict`, `audio`, `audio_dataset`, `batch_size`, `data_root` of `configs/inference.yaml`.

    Raises:
        UserError: a corpus or split that is not there, an unknown argument, a target that may not be built.
    """
    root = deepcopy(run.config)
    if request.data_root is not None:
        root.data_root = request.data_root
    template = _template(root)
    root.evaluations, root.recipes = {}, {}
    for name, dataset in _datasets(root, request, template).items():
        root.evaluations[name] = template
        loader = root.evaluations[name]
        loader.dataset = dataset
        if request.batch_size is not None:
            loader.batch_size = request.batch_size
    check_targets(OmegaConf.to_container(root.evaluations, resolve=True))
    check_or_raise(root.evaluations)
    check_targets(OmegaConf.to_container(root.recipes, resolve=True))
    recipe_of = {
        f"{name}_{split}": root.recipes.get(name) for name, splits in request.data_dict.items() for split in splits
    }
    return [Evaluation(str(name), root.evaluations[name], recipe_of.get(name)) for name in root.evaluations]


def _template(root: DictConfig) -> DictConfig:
    """The loader whose settings an evaluation takes: the test loader, else a validation loader."""
    for key in ("test_dataloader", "val_dataloader"):
        loader = root.get(key)
        if loader is not None and "_target_" not in loader:  # several, by name
            loader = next((inner for inner in loader.values() if inner is not None), None)
        if loader is not None:
            return loader
    raise UserError("the run's config has neither a test_dataloader nor a val_dataloader")


def _datasets(root: DictConfig, request: DictConfig, template: DictConfig) -> dict[str, Any]:
    if request.audio is not None:
        if isinstance(request.audio, str) and request.audio.endswith((".jsonl", ".jsonl.gz")):
            return {"audio": OmegaConf.merge(template.dataset, {"manifest": request.audio})}
        root.audio = request.audio
        return {"audio": OmegaConf.to_container(request.audio_dataset, resolve=False)}
    if request.get("prompt") is not None:
        root.prompt = request.prompt
        return {"prompt": OmegaConf.to_container(request.prompt_dataset, resolve=False)}
    if not request.data_dict:
        return {"test": template.dataset}
    found: dict[str, Any] = {}
    for name, splits in request.data_dict.items():
        corpus = _corpus(root, str(name))
        for split, changes in splits.items():
            if not isinstance(corpus.get(split), DictConfig):
                names = [str(key) for key, value in corpus.items() if isinstance(value, DictConfig)]
                raise UserError(f"data_dict.{name}.{split}: no such split{did_you_mean(split, names)}")
            base = corpus[split] if "_target_" in corpus[split] else OmegaConf.merge(template.dataset, corpus[split])
            found[f"{name}_{split}"] = _wrapped(OmegaConf.merge(base, changes or {}), template)
    return found


def _wrapped(dataset: Any, template: DictConfig) -> Any:
    """Inside of what wraps the datasets of this run, as instructions are put around clips; else as it is."""
    outer = template.dataset
    if not isinstance(outer.get("dataset"), DictConfig) or dataset.get("_target_") == outer.get("_target_"):
        return dataset
    wrapped = deepcopy(outer)
    wrapped.dataset = dataset
    return wrapped


def _corpus(root: DictConfig, name: str) -> DictConfig:
    """The run's own node of that name, else `configs/data_dict/<name>.yaml`."""
    own = root.get("data_dict") or {}
    if name in own:
        return own[name]
    available = sorted(path.stem for path in (CONFIGS / "data_dict").glob("*.yaml"))
    if name not in available:
        raise UserError(f"data_dict.{name}: no such corpus{did_you_mean(name, [*map(str, own), *available])}")
    request = Request(CONFIGS, "inference", (f"+data_dict={name}",))
    try:
        composed = request.compose()
    except COMPOSE_ERRORS as error:
        raise UserError(explain(error, request)) from None
    if root.get("data_dict") is None:
        root.data_dict = {}
    root.data_dict[name] = OmegaConf.to_container(composed.data_dict[name], resolve=False)
    if root.data_dict[name].get("recipe") is not None:
        root.recipes[name] = root.data_dict[name].recipe
    return root.data_dict[name]

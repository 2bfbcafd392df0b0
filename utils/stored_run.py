"""A run that lies in a folder: its config, read as data, and the datasets it can be evaluated on."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Collection, Iterator
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
from utils.locate import locate
from utils.names import did_you_mean
from utils.save import artefact
from utils.trust import check_targets, instantiate_untrusted
from utils.validate import check_or_raise

_LARGEST_CONFIG = 4 * 2**20  # bytes
# Arguments of datasets that choose among their items, or say how these are kept.
_CHOOSING = ("max_samples", "min_duration", "max_duration", "cache_bytes", "cache")


@dataclass(frozen=True)
class StoredRun:
    """`config` is what the run was built from; nothing of it is built or imported by reading it."""

    exp_dir: Path
    config: DictConfig

    @property
    def checkpoint_dir(self) -> Path:
        return self.exp_dir / "checkpoints"

    def with_settings(self, key: str, changes: DictConfig) -> StoredRun:
        """The same run whose predictor has other arguments; nulls change nothing.

        Args:
            key: what the arguments are called by at the prompt, `infer_args`.

        Raises:
            UserError: the run has no predictor, or that has no such argument.
        """
        given = {str(name): value for name, value in changes.items() if value is not None}
        if not given:
            return self
        if self.config.get("predictor") is None:
            raise UserError(f"predictor: {self.exp_dir / 'config.yaml'} has none")
        target = self.config.predictor["_target_"]
        check_targets({"predictor": {"_target_": target}})
        known = list(inspect.signature(locate(target)).parameters)
        config = deepcopy(self.config)
        for name, value in given.items():
            if name not in known:
                hint = did_you_mean(name, known)
                raise UserError(f"{key}.{name}: the run's {target.rpartition('.')[2]} has no such setting{hint}")
            config.predictor[name] = value
        return StoredRun(self.exp_dir, config)

    def build(self, key: str) -> Any:
        """The object that the node `key`, which may be dotted, describes.

        Raises:
            UserError: there is no such node, it does not fit the code, or it names what may not be built.
        """
        found = OmegaConf.select(self.config, key)
        if found is None:
            raise UserError(f"{key}: {self.exp_dir / 'config.yaml'} has none")
        node = OmegaConf.create({key: OmegaConf.to_container(found, resolve=True)})
        check_targets(OmegaConf.to_container(node))
        check_or_raise(node)
        return instantiate_untrusted(node)[key]

    def plain(self, key: str) -> Any:
        """The node `key` as plain data."""
        return OmegaConf.to_container(self.config[key], resolve=True)

    def default_checkpoint(self) -> str:
        """The best where the run kept one, else the last."""
        return "best" if (self.checkpoint_dir / "best").exists() else "last"


@dataclass(frozen=True)
class Evaluation:
    """A set to run the model on: its loader's config, and the recipe's where its corpus may still have to be made."""

    name: str
    loader: DictConfig
    recipe: DictConfig | None = None

    def data(self) -> Any:
        """What its items are, as plain data; not how many of them are taken, nor how they are kept in memory."""
        return _without(OmegaConf.to_container(self.loader.dataset, resolve=True), _CHOOSING)


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
    return StoredRun(folder, _with_own_artefacts(config, folder))


def _with_own_artefacts(config: DictConfig, folder: Path) -> DictConfig:
    """The same with the run's copies of files in the place of those that it was trained with."""
    copies = {}
    for name, path in (config.get("artefacts") or {}).items():
        if isinstance(path, str) and (copy := artefact(folder, str(name), path)).is_file():
            copies[path] = str(copy)
    if not copies:
        return config
    return OmegaConf.create(_replaced(OmegaConf.to_container(config), copies))


def _replaced(node: Any, values: dict[str, str]) -> Any:
    if isinstance(node, dict):
        return {key: _replaced(value, values) for key, value in node.items()}
    if isinstance(node, list):
        return [_replaced(value, values) for value in node]
    return values.get(node, node) if isinstance(node, str) else node


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
        request: `data_dict`, `audio`, `audio_dataset`, `batch_size`, `data_root`, `wordings` of
            `configs/inference.yaml`.

    Raises:
        UserError: a corpus, split or wording that is not there, an unknown argument, a target that may not be built.
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
        if request.get("wordings") is not None:
            _reword(loader.dataset, root.get("instructions") or {}, request.wordings)
        if request.batch_size is not None:
            loader.batch_size = request.batch_size
    check_targets(OmegaConf.to_container(root.evaluations, resolve=True))
    check_or_raise(root.evaluations)
    check_targets(OmegaConf.to_container(root.recipes, resolve=True))
    recipe_of = {
        f"{name}_{split}": root.recipes.get(name) for name, splits in request.data_dict.items() for split in splits
    }
    suffix = f"_{_name_of(request.wordings)}" if request.get("wordings") is not None else ""
    return [Evaluation(f"{name}{suffix}", root.evaluations[name], recipe_of.get(name)) for name in root.evaluations]


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
    root.audio = _listed(request.audio)
    if request.get("prompt") is not None:
        root.prompt = request.prompt
        return {"prompt": OmegaConf.to_container(request.prompt_dataset, resolve=False)}
    if request.audio is not None:
        if isinstance(root.audio, str) and root.audio.endswith((".jsonl", ".jsonl.gz")):
            return {"audio": _reading(template.dataset, root.audio)}
        return {"audio": OmegaConf.to_container(request.audio_dataset, resolve=False)}
    if not request.data_dict:
        return {"test": template.dataset}
    found: dict[str, Any] = {}
    for name, splits in request.data_dict.items():
        if "_target_" in splits:  # a whole dataset, as of `data@data_dict=...`
            root.data_dict = OmegaConf.merge(root.get("data_dict") or {}, {name: splits})
            found[str(name)] = _wrapped(root.data_dict[name], template)
            continue
        corpus = _corpus(root, str(name))
        for split, changes in splits.items():
            if not isinstance(corpus.get(split), DictConfig):
                names = [str(key) for key, value in corpus.items() if isinstance(value, DictConfig)]
                raise UserError(f"data_dict.{name}.{split}: no such split{did_you_mean(split, names)}")
            base = corpus[split] if "_target_" in corpus[split] else OmegaConf.merge(template.dataset, corpus[split])
            found[f"{name}_{split}"] = _wrapped(OmegaConf.merge(base, changes or {}), template)
    return found


def _reword(dataset: DictConfig, instructions: Any, wordings: Any) -> None:
    """Give all tasks of a dataset other wordings: a kind that `instructions.<task>` has, or templates themselves."""
    found = list(_with_templates(dataset, ""))
    if not found:
        raise UserError("wordings: the data of this run has no instructions")
    for task, node in found:
        if not isinstance(wordings, str):
            node.templates = wordings
        else:
            kinds = list(map(str, instructions.get(task) or {}))
            if wordings not in kinds:
                hint = did_you_mean(wordings, kinds)
                raise UserError(f"wordings: the run has no {wordings!r} of {task}, only {', '.join(kinds)}{hint}")
            node.templates = instructions[task][wordings]
        node.wording = None


def _with_templates(node: Any, name: str) -> Iterator[tuple[str, DictConfig]]:
    if not isinstance(node, DictConfig):
        return
    if "templates" in node:
        yield str(node.get("task") or name), node
    for key, value in node.items():
        yield from _with_templates(value, str(key))


def _name_of(wordings: Any) -> str:
    return wordings if isinstance(wordings, str) else "own_wordings"


def _without(content: Any, names: Collection[str]) -> Any:
    if isinstance(content, dict):
        return {key: _without(value, names) for key, value in content.items() if key not in names}
    return [_without(value, names) for value in content] if isinstance(content, list) else content


def _listed(audio: Any) -> Any:
    """What `audio` names; `-` is a list on standard input, a path a line.

    Raises:
        UserError: there is none.
    """
    if audio != "-":
        return audio
    if paths := [line.strip() for line in sys.stdin if line.strip()]:
        return paths
    raise UserError("audio: standard input has no path in it")


def _reading(dataset: DictConfig, manifest: str) -> DictConfig:
    """The same of another collection; the innermost dataset reads it."""
    found = deepcopy(dataset)
    inner = found
    while "manifest" not in inner and isinstance(inner.get("dataset"), DictConfig):
        inner = inner.dataset
    inner.manifest = manifest
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

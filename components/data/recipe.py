"""Make or download a corpus and its manifests: `python -m components.data recipe NAME DIR`.

A name is a file of configs/data_dict, whose settings are the command's `key=value`, or any corpus that Lhotse knows:
then `key=value` are options of Lhotse's recipe, and `splits=`, `held_out=`, `labels=` those of `prepare_lhotse_corpus`.
"""

from __future__ import annotations

import argparse
import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from utils.compose import COMPOSE_ERRORS, CONFIGS, Request, compose_task, entry_keys
from utils.compose_errors import explain
from utils.config import register_omegaconf_resolvers
from utils.errors import UserError
from utils.names import did_you_mean

_LHOTSE_KEYS = ("splits", "held_out", "labels")


def main(arguments: list[str]) -> int:
    """Run the command; the exit code.

    Raises:
        UserError: there is no such name or key, the corpus is not there and may not be fetched, or its layout is wrong.
    """
    options = _parser().parse_intermixed_args(arguments)
    if options.name is None:
        print(listing())
        return 0
    if options.dir is None:
        raise UserError(f"recipe {options.name}: name the folder for its manifests, recipe {options.name} DIR")
    output_dir = Path(options.dir).expanduser().absolute()
    source = _Source(_absolute(options.data_root), options.download, _absolute(options.download_dir) or _cache())
    if options.name in own_corpora():
        _run_own(options.name, str(output_dir), source, options.settings)
    else:
        _run_lhotse(options.name, str(output_dir), source, options.settings)
    print(_closing_line(output_dir))
    return 0


def own_corpora() -> dict[str, str]:
    """The names of configs/data_dict, each with what it is: the first line of its comment."""
    found = {}
    for path in sorted((CONFIGS / "data_dict").glob("*.yaml")):
        comments = [
            line.lstrip("# ") for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("# ")
        ]
        found[path.stem] = comments[1].partition(";")[0].rstrip(".")
    return found


def listing() -> str:
    """All names, for a person."""
    own = own_corpora()
    width = max(map(len, own))
    lines = [f"{name:{width}}  {what}" for name, what in own.items()]
    try:
        from components.data.recipes import lhotse_corpora

        names = ", ".join(lhotse_corpora())
        return "\n".join([*lines, "", f"and by Lhotse's name: {names}"])
    except UserError as error:
        return "\n".join([*lines, "", f"and a hundred more by Lhotse's name, but {error}"])


@dataclass(frozen=True, slots=True)
class _Source:
    """Where a corpus comes from: a folder of one's own, or the net where that is allowed."""

    data_root: str | None
    may_download: bool
    folder: str

    @property
    def download_dir(self) -> str | None:
        return self.folder if self.may_download else None

    def require(self, name: str) -> None:
        if self.data_root is None and not self.may_download:
            raise UserError(f"recipe {name}: give --data-root DIR, a copy of the corpus, or --download")


def _absolute(path: str | None) -> str | None:
    return None if path is None else str(Path(path).expanduser().absolute())


def _cache() -> str:
    return str(Path(entry_keys(CONFIGS, "default").cache_dir).expanduser().absolute() / "downloads")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m components.data recipe", description=__doc__.split("\n\n")[0])
    parser.add_argument("name", nargs="?", help="of a corpus; without it all names are listed")
    parser.add_argument("dir", nargs="?", help="where the manifests are written; the audio stays where it is")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings of the recipe")
    parser.add_argument("--data-root", help="your own copy of the corpus; it is only read")
    parser.add_argument("--download", action="store_true", help="fetch the corpus where there is no --data-root")
    parser.add_argument("--download-dir", help="where it is fetched to (cache_dir/downloads)")
    return parser


def _run_own(name: str, output_dir: str, source: _Source, changes: Sequence[str]) -> None:
    from hydra.utils import get_method

    settings = _settings(name, output_dir, source, changes)
    prepare = get_method(settings.pop("_target_"))
    taken = inspect.signature(prepare).parameters
    if "data_root" in taken or "train_val_dir" in taken:
        source.require(name)
    prepare(**settings)


def _settings(name: str, output_dir: str, source: _Source, changes: Sequence[str]) -> dict[str, Any]:
    """The recipe's node of `configs/data_dict/<name>.yaml` with `changes`, as plain data."""
    register_omegaconf_resolvers()
    overrides = (f"data_dict={name}", *(f"data_dict.{name}.{change}" for change in changes))
    request = Request(CONFIGS, "default", overrides)
    try:
        config = compose_task(request)
    except COMPOSE_ERRORS as error:
        raise UserError(explain(error, request)) from None
    corpus = config.data_dict[name]
    with open_dict(config):
        config.data_root = source.data_root
        corpus.output_dir = output_dir
        if "download_dir" in corpus.recipe:
            corpus.recipe.download_dir = source.download_dir
    try:
        return dict(OmegaConf.to_container(corpus.recipe, resolve=True))
    except OmegaConfBaseException as error:
        raise UserError(f"recipe {name}: {str(error).splitlines()[0]}") from None


def _run_lhotse(name: str, output_dir: str, source: _Source, settings: Sequence[str]) -> None:
    from components.data.recipes import lhotse_corpora, prepare_lhotse_corpus

    names = lhotse_corpora()
    if name not in names:
        raise UserError(
            f"there is no recipe {name!r}{did_you_mean(name, [*names, *own_corpora()])}: see all by `recipe`"
        )
    given = _given(name, settings)
    ours = {
        key: given.pop(key) for key in _LHOTSE_KEYS if key in given and not _is_lhotse_option(name, key, given[key])
    }
    prepare_lhotse_corpus(
        name, output_dir, download_dir=source.download_dir, data_root=source.data_root, options=given, **ours
    )


def _is_lhotse_option(name: str, key: str, value: Any) -> bool:
    """`splits` of Common Voice is a list of its tables; ours is a mapping."""
    return key == "splits" and not isinstance(value, dict)


def _given(name: str, settings: Sequence[str]) -> dict[str, Any]:
    for setting in settings:
        if "=" not in setting:
            raise UserError(f"recipe {name}: {setting!r} is no key=value")
    try:
        return dict(OmegaConf.to_container(OmegaConf.from_dotlist(list(settings))))
    except (OmegaConfBaseException, ValueError) as error:
        raise UserError(f"recipe {name}: {str(error).splitlines()[0]}") from None


def _closing_line(output_dir: Path) -> str:
    about = json.loads((output_dir / "corpus.json").read_text(encoding="utf-8"))
    splits = "; ".join(
        f"{name}.jsonl {held['clips']} clips, {held['hours']} h" for name, held in about["splits"].items()
    )
    left_out = f" | left out: {about['left_out']}, see left_out.jsonl" if about["left_out"] else ""
    return f"{about['name']} ({about['licence']}) | {output_dir} | {splits}{left_out}"

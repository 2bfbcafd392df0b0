"""Every corpus that Lhotse knows: its `download_<corpus>` and `prepare_<corpus>`, and manifests of ours made of them.

Lhotse has recipes for about a hundred corpora (LibriSpeech, AISHELL, Common Voice, LJSpeech, MUSAN, Speech Commands,
yes/no, GigaSpeech, VCTK, AMI, ...). What is here calls them, and turns what they return into `<split>.jsonl`.
Licence: each corpus has its own; those that are named in docs/corpora.md are written beside the manifests.
Source: github.com/lhotse-speech/lhotse; the recipes of release 1.33 were looked at.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import logging
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from components.data.manifest import Record
from components.data.recipes.common import (
    Corpus,
    is_prepared,
    require_folder,
    whole_folder,
    write_corpus,
)
from components.data.recipes.lhotse_records import parts_of
from components.data.splits import share_of
from utils.errors import UserError
from utils.imports import require
from utils.names import did_you_mean

logger = logging.getLogger(__name__)

# corpus -> (licence, source, what the folder must hold): those whose trees are known to this project's tests.
_KNOWN = {
    "aishell": ("Apache-2.0", "https://www.openslr.org/33", "data_aishell/{wav,transcript}"),
    "commonvoice": (
        "CC0-1.0",
        "https://commonvoice.mozilla.org",
        "<language>/{train,dev,test}.tsv and <language>/clips/*.mp3",
    ),
    "librispeech": (
        "CC BY 4.0",
        "https://www.openslr.org/12",
        "train-clean-100/<speaker>/<chapter>/*.{flac,trans.txt} and its like (the folder LibriSpeech)",
    ),
    "ljspeech": ("public domain", "https://keithito.com/LJ-Speech-Dataset", "metadata.csv and wavs/"),
    "musan": ("CC BY 4.0 (files differ: see each LICENSE)", "https://www.openslr.org/17", "music/, noise/ and speech/"),
    "speechcommands": (
        "CC BY 4.0",
        "http://download.tensorflow.org/data/speech_commands_v0.02.tar.gz",
        "speech_commands_v0.02/ and speech_commands_test_set_v0.02/",
    ),
    "yesno": ("Apache-2.0", "https://www.openslr.org/1", "the 60 files 0_1_0_1_0_1_0_1.wav of waves_yesno/"),
}
_CORPUS_FOLDER = ("corpus_dir", "data_dir", "tedlium_root")
_NOT_CORPORA = ("utils",)


def lhotse_corpora() -> list[str]:
    """The names of all corpora that the installed Lhotse can prepare.

    Raises:
        UserError: Lhotse is not installed.
    """
    recipes = require("lhotse.recipes", extra="data")
    names = {name.removeprefix("prepare_") for name in dir(recipes) if name.startswith("prepare_")}
    for module in pkgutil.iter_modules(recipes.__path__):
        if module.name not in names and module.name not in _NOT_CORPORA and _find("prepare", module.name):
            names.add(module.name)
    return sorted(names)


def prepare_lhotse_corpus(
    corpus: str,
    output_dir: str,
    download_dir: str | None = None,
    data_root: str | None = None,
    options: Mapping[str, Any] | None = None,
    splits: Mapping[str, Sequence[str]] | None = None,
    held_out: Mapping[str, float] | None = None,
    labels: Mapping[str, str] | None = None,
) -> None:
    """Write the manifests of a corpus that Lhotse knows into `output_dir`; does nothing if they are there.

    `output_dir/lhotse` keeps Lhotse's own manifests, for those who want cuts.

    Args:
        corpus: as Lhotse calls it: the `x` of its `prepare_x`.
        download_dir: where Lhotse downloads to, if need be and it can; a download that broke off is gone on with.
        data_root: a copy of the corpus, in the layout that Lhotse expects; it is only read.
        options: passed through to `download_<corpus>` and `prepare_<corpus>`, each to whichever takes it.
        splits: split -> the parts of the corpus that it is made of: `{train: [train-clean-5], val: [dev-clean-2]}`.
            None: every part is a split by Lhotse's name. Parts that are not named are left aside.
        held_out: split -> share of the `train` clips that is moved there, by a hash of their ids.
        labels: target -> the field of a record that is its class, e.g. `{word: text}`.

    Raises:
        UserError: Lhotse is not installed, does not know `corpus` or an option, cannot download it, or does not find
            the layout that it expects; a part or a split is missing or empty.
    """
    folder = Path(output_dir)
    settings = {
        "corpus": corpus,
        "data_root": data_root,
        "options": dict(options or {}),
        "splits": {split: list(parts) for split, parts in (splits or {}).items()},
        "held_out": dict(held_out or {}),
        "labels": dict(labels or {}),
        "version": 1,
    }
    if is_prepared(folder, settings):
        return
    prepare, download = _recipe(corpus)
    _check_options(corpus, settings["options"], prepare, download)
    corpus_dir = _corpus_dir(corpus, prepare, download, data_root, download_dir, settings["options"])
    with whole_folder(folder, settings) as temporary:
        parts = _prepare(corpus, prepare, corpus_dir, temporary / "lhotse", settings["options"])
        found = _labelled(_splits(corpus, parts, splits), settings["labels"])
        used = [part for names in (splits or {split: [split] for split in parts}).values() for part in names]
        licence, source, _ = _KNOWN.get(corpus, ("see the corpus's own page", f"Lhotse's recipe {corpus}", ""))
        write_corpus(
            temporary,
            Corpus(corpus, licence, source),
            _hold_out(found, settings["held_out"]),
            # Parts may share clips by design, and a corpus without a test set may be tested on its validation set.
            overlapping=splits is None or len(set(used)) < len(used),
            parts={name: len(records) for name, records in parts.items()},
            parts_left_aside=sorted(set(parts) - set(used)),
            made_with={"lhotse": importlib.metadata.version("lhotse")},
        )


# ------------------------------------------------------------------------------------------------------ Lhotse's side


def _recipe(corpus: str) -> tuple[Callable[..., Any], Callable[..., Any] | None]:
    require("lhotse", extra="data")
    prepare = _find("prepare", corpus)
    if prepare is None:
        names = lhotse_corpora()
        hint = did_you_mean(corpus.replace("-", "").replace("_", ""), names)
        hint = hint or " (all names: python -m components.data recipe)"
        raise UserError(f"Lhotse knows no corpus {corpus!r}{hint}")
    return prepare, _find("download", corpus)


def _find(verb: str, corpus: str) -> Callable[..., Any] | None:
    """Lhotse's `<verb>_<corpus>`, also of recipes that its package does not list."""
    recipes = require("lhotse.recipes", extra="data")
    found = getattr(recipes, f"{verb}_{corpus}", None)
    if found is None and corpus.isidentifier():
        try:
            found = getattr(importlib.import_module(f"lhotse.recipes.{corpus}"), f"{verb}_{corpus}", None)
        except ImportError:
            return None
    return found if callable(found) else None


def _check_options(
    corpus: str, options: Mapping[str, Any], prepare: Callable[..., Any], download: Callable[..., Any] | None
) -> None:
    taken = set(inspect.signature(prepare).parameters)
    taken |= set(inspect.signature(download).parameters) if download else set()
    taken -= {"output_dir", "target_dir"}
    for name in options:
        if name not in taken:
            hint = did_you_mean(name, taken) or f": it takes {', '.join(sorted(taken))}"
            raise UserError(f"options.{name}: Lhotse's recipe for {corpus} has no such option{hint}")


def _folder_parameter(prepare: Callable[..., Any]) -> str | None:
    """The argument that is the corpus's folder; None where there are several or none."""
    parameters = inspect.signature(prepare).parameters
    for name in _CORPUS_FOLDER:
        if name in parameters:
            return name
    needed = [name for name, p in parameters.items() if p.default is p.empty and name != "output_dir"]
    return needed[0] if len(needed) == 1 and not needed[0].endswith("s") else None


def _corpus_dir(
    corpus: str,
    prepare: Callable[..., Any],
    download: Callable[..., Any] | None,
    data_root: str | None,
    download_dir: str | None,
    options: Mapping[str, Any],
) -> Path | None:
    """The folder of the corpus, downloaded if need be; None where `options` name its folders."""
    parameter = _folder_parameter(prepare)
    if data_root is not None:
        if parameter is None:
            several = ", ".join(name for name in inspect.signature(prepare).parameters if name != "output_dir")
            raise UserError(f"{corpus}: Lhotse's recipe takes no single folder: name them by options ({several})")
        return require_folder(data_root)
    if parameter is None or parameter in options:
        return None
    if download is None or download_dir is None:
        reason = "Lhotse has no download for it" if download is None else "it is not to be downloaded"
        raise UserError(f"{corpus}: {reason}, give data_root=DIR, a folder that holds {_layout(corpus)}")
    target = Path(download_dir) / corpus
    target.mkdir(parents=True, exist_ok=True)
    taken = inspect.signature(download).parameters
    chosen = {name: value for name, value in options.items() if name in taken}
    logger.info("Lhotse downloads %s into %s", corpus, target)
    try:
        where = download(target_dir=target, **chosen)
    except Exception as error:
        reason = _reason(error)
        raise UserError(f"Lhotse cannot download {corpus} ({reason}): give data_root=DIR with your own copy") from error
    return Path(where) if isinstance(where, (str, Path)) else target


def _prepare(
    corpus: str, prepare: Callable[..., Any], corpus_dir: Path | None, own: Path, options: Mapping[str, Any]
) -> dict[str, list[Record]]:
    """Call the recipe; part -> records."""
    parameters = inspect.signature(prepare).parameters
    arguments = {name: value for name, value in options.items() if name in parameters}
    folder = _folder_parameter(prepare)
    if corpus_dir is not None and folder is not None:
        arguments.setdefault(folder, corpus_dir)
    # A new folder each time: several recipes return less when they find manifests of an earlier call.
    for name in ("output_dir", "manifest_dir"):
        if name in parameters:
            arguments.setdefault(name, own)
    needed = [n for n, p in parameters.items() if p.default is p.empty and n not in arguments]
    if needed:
        raise UserError(f"{corpus}: Lhotse's recipe also needs options.{', options.'.join(needed)}")
    try:
        parts = parts_of(prepare(**arguments), own)
    except UserError:
        raise
    except ImportError as error:
        raise UserError(f"Lhotse cannot prepare {corpus}: {' '.join(str(error).split())}") from error
    except Exception as error:
        where = f"{corpus} from {corpus_dir}" if corpus_dir else corpus
        raise UserError(f"Lhotse cannot prepare {where} ({_reason(error)}): {_expected(corpus)}") from error
    if not any(parts.values()):
        raise UserError(f"Lhotse found nothing of {corpus} in {corpus_dir or 'the folders'}: {_expected(corpus)}")
    return parts


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _layout(corpus: str) -> str:
    return _KNOWN[corpus][2] if corpus in _KNOWN else f"what lhotse.recipes.prepare_{corpus} expects"


def _expected(corpus: str) -> str:
    return f"data_root must be a folder that holds {_layout(corpus)}"


# --------------------------------------------------------------------------------------------------------- our side


def _splits(
    corpus: str, parts: Mapping[str, list[Record]], splits: Mapping[str, Sequence[str]] | None
) -> dict[str, list[Record]]:
    """Split -> records; where two parts use the same ids, each id is preceded by its part."""
    found = {}
    for split, names in (splits or {name: [name] for name, records in parts.items() if records}).items():
        for name in names:
            if name not in parts:
                raise UserError(f"splits.{split}: {corpus} has no part {name!r} there but {', '.join(sorted(parts))}")
        records = [{**record, "part": name} for name in names for record in parts[name]]
        if len({record["id"] for record in records}) < len(records):
            records = [{**record, "id": f"{record['part']}/{record['id']}"} for record in records]
        found[split] = sorted(records, key=lambda record: record["id"])
    return found


def _labelled(splits: dict[str, list[Record]], labels: Mapping[str, str]) -> dict[str, list[Record]]:
    if not labels:
        return splits

    def labelled(record: Record) -> Record:
        known = {target: str(record[name]) for target, name in labels.items() if record.get(name) not in (None, "")}
        return {**record, "labels": known}

    return {split: [labelled(record) for record in records] for split, records in splits.items()}


def _hold_out(splits: dict[str, list[Record]], shares: Mapping[str, float]) -> dict[str, list[Record]]:
    if not shares:
        return splits
    if "train" not in splits or sum(shares.values()) >= 1:
        raise UserError("held_out: shares of a split `train` that sum to less than 1")
    result: dict[str, list[Record]] = {**splits, "train": [], **{split: [] for split in shares}}
    for record in splits["train"]:
        place, home = share_of(record["id"]), "train"
        for split, share in shares.items():
            if 0 <= place < share:
                home = split
            place -= share
        result[home].append(record)
    return result

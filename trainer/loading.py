"""Weights from elsewhere: whole, in parts that are named, or for another vocabulary, with a report of every tensor."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainer import checkpoint as checkpoints
from trainer.low_rank import layers_with_updates, merge_updates, plain_names
from utils.errors import UserError

logger = logging.getLogger(__name__)

_SHOWN = 8  # names in one line of a report
_KEYS = ("path", "include", "exclude", "rename", "partial", "remap_rows")


@dataclass
class LoadReport:
    """What a load did.

    Attributes:
        source: the file.
        loaded: names in the model that have the file's values now.
        skipped: names in the file -> why they went nowhere.
        fresh: names in the model that keep what they had.
        rows: of those loaded for another vocabulary, what became of its symbols.
    """

    source: str
    loaded: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    fresh: list[str] = field(default_factory=list)
    rows: dict[str, RowReport] = field(default_factory=dict)

    def __str__(self) -> str:
        total = len(self.loaded) + len(self.fresh)
        lines = [f"weights from {self.source}: {len(self.loaded)} of the model's {total} tensors"]
        by_row: dict[str, list[str]] = {}
        for name, rows in self.rows.items():
            by_row.setdefault(str(rows), []).append(name)
        lines += [f"  rows of {_names(names)}: {told}" for told, names in by_row.items()]
        reasons: dict[str, list[str]] = {}
        for name, reason in self.skipped.items():
            reasons.setdefault(reason, []).append(name)
        lines += [f"  skipped, {reason}: {_names(names)}" for reason, names in reasons.items()]
        lines += [f"  keep their fresh values: {_names(self.fresh)}"] if self.fresh else []
        return "\n".join(lines)


def load_pretrained(
    model: nn.Module,
    path: str | Path,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    rename: Mapping[str, str] | None = None,
    partial: bool = False,
    remap_rows: Mapping[str, Mapping[str, Any]] | None = None,
) -> LoadReport:
    """Load weights into `model`: all of them, or what was asked for; the report is for the caller to log.

    Args:
        path: a checkpoint folder, of which the averaged weights are preferred; a `.safetensors` file; or a file that
            `torch.save` wrote, read without running code.
        include: regular expressions, matched at the start of names in the model; only these are loaded, and each
            tensor of the model that matches must be found.
        exclude: likewise; these are not loaded.
        rename: prefixes of names in the file -> what they are in the model; the first that fits is taken.
        partial: load what fits, by name and shape, and leave the rest.
        remap_rows: for a change of vocabulary, a regular expression of tensors with a row for each symbol -> the `old`
            and the `new` vocabulary, each a list or a file as of `read_symbols`. Rows go by symbol; those of new ones
            stay as they were initialised.

    Raises:
        UserError: the file can not be read, a pattern or prefix matches nothing, nothing was loaded, rows and symbols
            differ in number, or, without `partial`, a tensor that was asked for does not fit.
    """
    file = _file(Path(path))
    wanted, unwanted = _compiled("include", include), _compiled("exclude", exclude)

    def is_asked_for(name: str) -> bool:
        return (include is None or _matches(name, wanted)) and not _matches(name, unwanted)

    own = model.state_dict()
    read = _read(file)
    layers = layers_with_updates(read, own)
    given = _renamed(merge_updates(read, layers), rename or {}, file)
    frozen = {name: digest for name, digest in plain_names(_frozen(file), layers).items() if is_asked_for(name)}
    given = merge_updates(given | checkpoints.held_tensors(model, frozen, str(file)), layers)
    _refuse_idle("include", wanted, (*own, *given), file)
    _refuse_idle("exclude", unwanted, (*own, *given), file)
    report = LoadReport(str(file))
    shared = {name: tensor for name, tensor in given.items() if name in own and is_asked_for(name)}
    remapped, report.rows = _for_new_vocabulary(shared, own, remap_rows or {}, file)
    given |= remapped
    for name, tensor in given.items():
        if not is_asked_for(name):
            report.skipped[name] = "not asked for"
        elif name not in own:
            report.skipped[name] = "not in the model"
        elif tensor.shape != own[name].shape:
            report.skipped[name] = f"of shape {list(tensor.shape)}, the model's {list(own[name].shape)}"
        else:
            report.loaded.append(name)
    report.fresh = [name for name in own if name not in set(report.loaded)]
    if not partial:
        _refuse_misfits(report, [name for name in report.fresh if is_asked_for(name)])
    if not report.loaded:
        raise UserError(f"pretrained: nothing of {file} was loaded. {_hint(given, own)}")
    model.load_state_dict({name: given[name] for name in report.loaded}, strict=False)
    return report


def load_pretrained_from(model: nn.Module, pretrained: str | Path | Mapping[str, Any]) -> LoadReport:
    """`load_pretrained`, as the config key says it: a path, or a mapping of `path` and the other arguments. Logged.

    Raises:
        UserError: as `load_pretrained`; or the mapping has no path, or a key that is none.
    """
    settings = dict(pretrained) if isinstance(pretrained, Mapping) else {"path": pretrained}
    if unknown := [key for key in settings if key not in _KEYS]:
        raise UserError(f"pretrained.{unknown[0]}: there is no such key, only {', '.join(_KEYS)}")
    if settings.get("path") is None:
        raise UserError("pretrained.path: name a checkpoint folder or a file of weights")
    report = load_pretrained(model, **settings)
    logger.info("%s", report)
    return report


def begin_with(
    model: nn.Module, pretrained: str | Path | Mapping[str, Any] | None, adapt: Callable[[nn.Module], None] | None
) -> None:
    """Load what a run begins with, then let `adapt` say what of it trains, as `components.layers.Lora` does.

    Raises:
        UserError: as `load_pretrained_from`, or of `adapt`.
    """
    if pretrained is not None:
        load_pretrained_from(model, pretrained)
    elif adapt is not None:
        logger.warning("adapt: without pretrained, what is frozen stays as the model was initialised")
    if adapt is not None:
        adapt(model)


def load_trained(model: nn.Module, checkpoint: Path, pretrained: str | Path | Mapping[str, Any] | None) -> None:
    """Load a run's checkpoint; the frozen parameters it leaves out come from what the run began with.

    Of a run with low-rank updates, a model without them gets the weights that these make.

    Raises:
        UserError: the weights do not fit, or what was left out is not to be had.
    """
    file = checkpoints.weights_file(checkpoint)
    tensors, frozen = checkpoints.read_weights(file), checkpoints.read_frozen(file)
    if pretrained is not None and frozen:
        load_pretrained_from(model, pretrained)
    layers = layers_with_updates(tensors, model.state_dict())
    held = checkpoints.held_tensors(model, plain_names(frozen, layers), str(file))
    checkpoints.load_tensors(model, merge_updates(tensors | held, layers), str(file))


def _refuse_idle(key: str, patterns: Sequence[re.Pattern[str]], names: Sequence[str], file: Path) -> None:
    for pattern in patterns:
        if not any(pattern.match(name) for name in names):
            raise UserError(f"pretrained.{key}: {pattern.pattern!r} matches no tensor of {file} or of the model")


def _refuse_misfits(report: LoadReport, missing: Sequence[str]) -> None:
    """Whoever asks for all gets all, on both sides."""
    problems = [f"{name} is {why}" for name, why in report.skipped.items() if why != "not asked for"]
    problems += [f"{name} is missing in the file" for name in missing if name not in report.skipped]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(
            f"pretrained: {report.source} does not fit the model: {'; '.join(problems[:3])}{more}. "
            "Name parts with pretrained.include, exclude or rename, or take what fits with pretrained.partial=true"
        )


# ------------------------------------------------------------------------------------------------------------- reading


def _file(path: Path) -> Path:
    path = path.expanduser()
    if not path.exists():
        raise UserError(f"pretrained: there is no {path}")
    if path.is_file():
        return path
    if not (path / "manifest.json").exists():
        raise UserError(f"pretrained: {path} is no checkpoint, it has no manifest.json; name one, such as .../last")
    if problems := checkpoints.verify(path):
        raise UserError(f"pretrained: checkpoint {path} is not whole: {'; '.join(problems)}")
    return checkpoints.weights_file(path)


def _frozen(file: Path) -> dict[str, str]:
    return checkpoints.read_frozen(file) if file.suffix == ".safetensors" else {}


def _read(file: Path) -> dict[str, Tensor]:
    if file.suffix == ".safetensors":
        return checkpoints.read_weights(file)
    try:
        content = torch.load(file, weights_only=True, map_location="cpu")
    except Exception as error:  # whatever a file that is none can do to an unpickler
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"pretrained: can not read {file} as weights without running code: {reason}") from None
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise UserError(f"pretrained: {file} holds no mapping of names to tensors")
    return {str(name): tensor for name, tensor in content.items() if isinstance(tensor, Tensor)}


def _renamed(tensors: Mapping[str, Tensor], rename: Mapping[str, str], file: Path) -> dict[str, Tensor]:
    for prefix in rename:
        if not any(name.startswith(prefix) for name in tensors):
            raise UserError(f"pretrained.rename: no tensor of {file} begins with {prefix!r}")
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        prefix = next((prefix for prefix in rename if name.startswith(prefix)), "")
        new_name = rename[prefix] + name[len(prefix) :] if prefix in rename else name
        if new_name in renamed:
            raise UserError(f"pretrained.rename: two tensors of {file} become {new_name!r}")
        renamed[new_name] = tensor
    return renamed


def _compiled(key: str, patterns: str | Sequence[str] | None) -> list[re.Pattern[str]]:
    try:
        return [re.compile(pattern) for pattern in ([patterns] if isinstance(patterns, str) else patterns or ())]
    except re.error as error:
        raise UserError(f"pretrained.{key}: {error.pattern!r} is no regular expression: {error}") from None


def _matches(name: str, patterns: Sequence[re.Pattern[str]]) -> bool:
    return any(pattern.match(name) for pattern in patterns)


def _hint(given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    first = [next(iter(names), "nothing") for names in (given, own)]
    return f"Its names are like {first[0]!r}, the model's like {first[1]!r}: see pretrained.rename"


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


# ---------------------------------------------------------------------------------------------------------- vocabulary


def read_symbols(vocabulary: str | Path | Sequence[Any]) -> list[str]:
    """The symbol of each row, in order.

    Args:
        vocabulary: a list; or a file: JSON, a list, `{symbol: row}` or `{"tokens": list, ...}`; else text with a symbol
            to a line, or, where all lines are so, `symbol row` (as OpenFst and k2 write them) or `symbol<tab>score` (as
            sentencepiece does).

    Raises:
        UserError: there is no such file, it is no vocabulary, or its rows have gaps.
    """
    if not isinstance(vocabulary, (str, Path)):
        return [str(symbol) for symbol in vocabulary]
    path = Path(vocabulary).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
        content: Any = json.loads(text) if path.suffix == ".json" else text.removesuffix("\n").split("\n")
    except (OSError, ValueError) as error:
        raise UserError(f"can not read the vocabulary {path}: {error}") from None
    if path.suffix != ".json":
        columns = [re.fullmatch(r"(\S+)\s+(\d+)", line) for line in content]
        tabs = [line.split("\t") for line in content]
        if sorted(int(match[2]) for match in columns if match) == list(range(len(content))):
            content = {match[1]: int(match[2]) for match in columns if match}
        elif all(len(parts) == 2 for parts in tabs):
            content = [symbol for symbol, _ in tabs]
    if isinstance(content, dict) and isinstance(content.get("tokens"), list):  # a tokenizer's file
        content = content["tokens"]
    if isinstance(content, dict):
        if sorted(content.values(), key=str) != sorted(range(len(content)), key=str):
            raise UserError(f"the vocabulary {path} does not give its {len(content)} symbols the rows from 0 on")
        content = sorted(content, key=content.__getitem__)
    if not isinstance(content, list) or not content:
        raise UserError(f"the vocabulary {path} is neither a list of symbols nor a mapping of these to rows")
    return [str(symbol) for symbol in content]


def _for_new_vocabulary(
    shared: Mapping[str, Tensor], own: Mapping[str, Tensor], remap: Mapping[str, Mapping[str, Any]], file: Path
) -> tuple[dict[str, Tensor], dict[str, RowReport]]:
    """What `remap_rows` says, done to the tensors that the file and the model share."""
    tensors: dict[str, Tensor] = {}
    reports: dict[str, RowReport] = {}
    for pattern in _compiled("remap_rows", list(remap)):
        key, vocabularies = f"pretrained.remap_rows.{pattern.pattern}", remap[pattern.pattern]
        if not isinstance(vocabularies, Mapping) or set(vocabularies) != {"old", "new"}:
            raise UserError(f"{key}: give it old and new, each a list of symbols or a file of them, and nothing else")
        names = [name for name in shared if pattern.match(name)]
        if not names:
            raise UserError(f"{key}: it matches no tensor that {file} and the model share")
        try:
            old, new = read_symbols(vocabularies["old"]), read_symbols(vocabularies["new"])
            for name in names:
                key = f"pretrained.remap_rows.{pattern.pattern}: {name}"
                tensors[name], reports[name] = remap_rows(shared[name], old, new, own[name])
        except UserError as error:
            raise UserError(f"{key}: {error}") from None
    return tensors, reports


@dataclass(frozen=True)
class RowReport:
    """Which symbols kept their rows, which are new, and which are gone."""

    kept: list[str]
    fresh: list[str]
    dropped: list[str]

    def __str__(self) -> str:
        parts = [f"{len(self.kept)} symbols keep their rows"]
        parts += [f"{len(self.fresh)} are new ({_names(self.fresh)})"] if self.fresh else []
        parts += [f"{len(self.dropped)} are gone ({_names(self.dropped)})"] if self.dropped else []
        return "; ".join(parts)


@torch.no_grad()
def remap_rows(
    old: Tensor, old_symbols: Sequence[str], new_symbols: Sequence[str], new: Tensor
) -> tuple[Tensor, RowReport]:
    """Rows of an embedding or output layer for another vocabulary: those of shared symbols are taken over.

    Args:
        old: `[V_old, ...]`, the trained rows.
        old_symbols, new_symbols: the symbol of each row.
        new: `[V_new, ...]`, freshly initialised rows, which symbols without a past keep.

    Returns:
        a new tensor like `new`, and what became of the symbols.

    Raises:
        UserError: rows and symbols differ in number, a symbol occurs twice, or rows differ in shape.
    """
    for name, tensor, symbols in (("old", old, old_symbols), ("new", new, new_symbols)):
        num_rows = len(tensor) if tensor.dim() else 0
        if num_rows != len(symbols):
            raise UserError(f"the {name} vocabulary has {len(symbols)} symbols, its tensor {num_rows} rows")
        if len(set(symbols)) != len(symbols):
            twice = next(symbol for symbol in symbols if list(symbols).count(symbol) > 1)
            raise UserError(f"the {name} vocabulary has the symbol {twice!r} twice")
    if old.shape[1:] != new.shape[1:]:
        raise UserError(f"a row was {list(old.shape[1:])} and is to be {list(new.shape[1:])}: rows can not be kept")
    row_of = {symbol: row for row, symbol in enumerate(old_symbols)}
    kept = [symbol for symbol in new_symbols if symbol in row_of]
    to = [row for row, symbol in enumerate(new_symbols) if symbol in row_of]
    remapped = new.clone()
    remapped[to] = old[[row_of[symbol] for symbol in kept]].to(new)
    new_set = set(new_symbols)
    fresh = [symbol for symbol in new_symbols if symbol not in row_of]
    return remapped, RowReport(kept, fresh, [symbol for symbol in old_symbols if symbol not in new_set])

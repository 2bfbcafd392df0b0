"""Tokenizers at the prompt: `python -m components.text <command> --help`."""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from components.text.normalize import Normalize
from components.text.tokenizer import Tokenizer, count_unknown, load_tokenizer, row_map
from components.text.training import KINDS, texts_of, train_tokenizer
from utils.errors import UserError
from utils.names import did_you_mean

_SETTINGS = ("field", "normalize", *list(inspect.signature(train_tokenizer).parameters)[1:])


def main(arguments: list[str]) -> int:
    """Run a command; the exit code."""
    options = _parser().parse_args(arguments or ["--help"])
    try:
        options.run(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _train(options: argparse.Namespace) -> None:
    settings = _settings([word for word in options.words if _is_setting(word)])
    paths = [word for word in options.words if not _is_setting(word)]
    if "kind" not in settings:
        raise UserError(f"train: name a kind, kind={'|'.join(KINDS)}")
    if len(paths) < 2:
        raise UserError("train: name a manifest (or several, or .txt files), and the file to write, TOKENIZER.json")
    *sources, output = paths
    if not output.endswith(".json"):
        raise UserError(f"train: the last name is the file to write, and {output} does not end in .json")
    normalize = Normalize.from_dict(settings.pop("normalize", {}))
    field = settings.pop("field", "text")
    made_of = {"settings": {**settings, "field": field}, "sources": sources}

    def texts() -> Iterator[Any]:
        return (text for source in sources for text in texts_of(source, field))

    tokenizer = train_tokenizer(texts(), normalize=normalize, **settings)
    tokenizer.made_of = made_of
    tokenizer.save(output)
    print(_about(tokenizer))
    print(count_unknown(tokenizer, texts()))
    print(f"-> {output}")


def _is_setting(word: str) -> bool:
    return "=" in word and not Path(word).exists()


def _settings(words: Sequence[str]) -> dict[str, Any]:
    try:
        settings = OmegaConf.to_container(OmegaConf.from_dotlist(list(words)))
    except (OmegaConfBaseException, ValueError) as error:
        raise UserError(f"train: {str(error).splitlines()[0]}") from None
    assert isinstance(settings, dict)
    for name in settings:
        if name not in _SETTINGS:
            raise UserError(f"train: {name!r} is no setting{did_you_mean(str(name), _SETTINGS)}")
    if not isinstance(settings.get("normalize", {}), dict):
        raise UserError("train: normalize has options of its own, normalize.case=lower")
    return {str(name): value for name, value in settings.items()}


def _about(tokenizer: Tokenizer) -> str:
    shown = " ".join(repr(token)[1:-1] if token.strip() else repr(token) for token in tokenizer.tokens[:40])
    more = f" and {tokenizer.vocab_size - 40} more" if tokenizer.vocab_size > 40 else ""
    return f"{tokenizer.kind} | {tokenizer.vocab_size} tokens | {tokenizer.fingerprint[:16]}\n{shown}{more}"


def _encode(options: argparse.Namespace) -> None:
    tokenizer = load_tokenizer(options.tokenizer)
    for text in _given(options.text):
        found = tokenizer.pieces(text) if options.pieces else map(str, tokenizer.encode(text))
        print(*found)


def _decode(options: argparse.Namespace) -> None:
    tokenizer = load_tokenizer(options.tokenizer)
    for line in _given([" ".join(options.ids)] if options.ids else []):
        try:
            ids = [int(word) for word in line.split()]
        except ValueError:
            raise UserError(f"decode: ids are numbers, not {line!r}") from None
        print(tokenizer.decode(ids))


def _given(texts: Sequence[str]) -> Iterator[str]:
    yield from texts or (line.rstrip("\n") for line in sys.stdin)


def _show(options: argparse.Namespace) -> None:
    print(_about(load_tokenizer(options.tokenizer)))


def _unknown(options: argparse.Namespace) -> None:
    tokenizer = load_tokenizer(options.tokenizer)
    for source in options.sources:
        print(f"{source}: {count_unknown(tokenizer, texts_of(source, options.field))}")


def _rows(options: argparse.Namespace) -> None:
    print(row_map(load_tokenizer(options.old), load_tokenizer(options.new)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m components.text", description="Tokenizers at the prompt.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Any, what: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=what, description=what)
        added.set_defaults(run=run)
        return added

    train = command("train", _train, "make a tokenizer of texts: kind=char [key=value ...] MANIFEST ... TOKENIZER.json")
    train.add_argument("words", nargs="+", metavar="key=value|FILE", help=f"settings are {', '.join(_SETTINGS)}")
    encode = command("encode", _encode, "texts to ids, one a line")
    encode.add_argument("tokenizer")
    encode.add_argument("text", nargs="*", help="without it, lines of stdin")
    encode.add_argument("--pieces", action="store_true", help="symbols instead of ids")
    decode = command("decode", _decode, "ids to a text")
    decode.add_argument("tokenizer")
    decode.add_argument("ids", nargs="*", help="without them, lines of stdin")
    command("show", _show, "what a tokenizer is").add_argument("tokenizer")
    unknown = command("unknown", _unknown, "what a vocabulary lacks of the texts of manifests")
    unknown.add_argument("tokenizer")
    unknown.add_argument("sources", nargs="+", metavar="MANIFEST")
    unknown.add_argument("--field", default="text", help="of the records (text)")
    rows = command("rows", _rows, "which rows of weights a change of vocabulary keeps")
    rows.add_argument("old")
    rows.add_argument("new")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

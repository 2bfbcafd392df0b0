"""Commands on collections of audio: `python -m components.data <command> --help`."""

from __future__ import annotations

import importlib
import sys

from utils.errors import UserError
from utils.names import did_you_mean

# command -> (module with `main(arguments)`, what it does)
COMMANDS = {
    "convert": ("components.data.convert", "from any layout to JSONL, Lhotse cuts, CSV, Kaldi, tar or HDF5"),
    "doctor": ("components.data.doctor", "what is wrong with a collection: lists of kept and dropped clips, a page"),
    "cmvn": ("components.data.cmvn", "mean and variance of features over a collection"),
    "extract": ("components.data.extract", "features or latents of a collection, once, over several processes"),
    "recipe": ("components.data.recipe", "make or download a corpus and its manifests"),
}


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] not in COMMANDS:
        for name, (_, what) in COMMANDS.items():
            print(f"python -m components.data {name:8}  {what}")
        if arguments in ([], ["--help"], ["-h"]):
            return 0
        print(f"error: there is no command {arguments[0]!r}{did_you_mean(arguments[0], COMMANDS)}", file=sys.stderr)
        return 2
    module = importlib.import_module(COMMANDS[arguments[0]][0])
    try:
        return int(module.main(arguments[1:]) or 0)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

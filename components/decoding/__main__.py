"""Commands on what decoders read: `python -m components.decoding <command> --help`."""

from __future__ import annotations

import importlib
import sys

from utils.errors import UserError
from utils.names import did_you_mean

# command -> (module with `main(arguments)`, what it does)
COMMANDS = {
    "ngram": ("components.decoding.kneser_ney", "an n-gram language model of a text, as an ARPA file"),
}


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] not in COMMANDS:
        for name, (_, what) in COMMANDS.items():
            print(f"python -m components.decoding {name:8}  {what}")
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

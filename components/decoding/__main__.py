"""Commands on what decoders read: `python -m components.decoding <command> --help`."""

from __future__ import annotations

import sys

from utils.commands import run_command

# command -> (module with `main(arguments)`, what it does)
COMMANDS = {
    "ngram": ("components.decoding.kneser_ney", "an n-gram language model of a text, as an ARPA file"),
}


def main(arguments: list[str]) -> int:
    """Run a command; the exit code."""
    return run_command("components.decoding", COMMANDS, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

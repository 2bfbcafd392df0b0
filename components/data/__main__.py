"""Commands on collections of audio: `python -m components.data <command> --help`."""

from __future__ import annotations

import sys

from utils.commands import run_command

# command -> (module with `main(arguments)`, what it does)
COMMANDS = {
    "convert": ("components.data.convert", "from any layout to JSONL, Lhotse cuts, CSV, Kaldi, tar or HDF5"),
    "doctor": ("components.data.doctor", "what is wrong with a collection: lists of kept and dropped clips, a page"),
    "cmvn": ("components.data.cmvn", "mean and variance of features over a collection"),
    "extract": ("components.data.extract", "features or latents of a collection, once, over several processes"),
    "recipe": ("components.data.recipe", "make or download a corpus and its manifests"),
}


def main(arguments: list[str]) -> int:
    """Run a command; the exit code."""
    return run_command("components.data", COMMANDS, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

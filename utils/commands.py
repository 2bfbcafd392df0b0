"""Commands of a package: `python -m <package> <command> ...`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping

from utils.errors import UserError
from utils.names import did_you_mean


def run_command(package: str, commands: Mapping[str, tuple[str, str]], arguments: list[str]) -> int:
    """Run the command that is named first, or say which there are; the exit code.

    Args:
        package: as one types it behind `python -m`.
        commands: command -> (module with `main(arguments)`, what it does).
        arguments: of the prompt.
    """
    if not arguments or arguments[0] not in commands:
        for name, (_, what) in commands.items():
            print(f"python -m {package} {name:8}  {what}")
        if arguments in ([], ["--help"], ["-h"]):
            return 0
        print(f"error: there is no command {arguments[0]!r}{did_you_mean(arguments[0], commands)}", file=sys.stderr)
        return 2
    module = importlib.import_module(commands[arguments[0]][0])
    try:
        return int(module.main(arguments[1:]) or 0)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2

"""The command ``pequegrad``: parses arguments, calls the package, prints.

Invariant: nothing is computed here; the exit code is 0 only when all is well; ``--json`` prints JSON and
nothing else.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ..errors import PequegradError
from . import cache_commands, export_commands, machine_commands
from .output import Printer


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; ``arguments`` default to those of the process."""
    parser = argparse.ArgumentParser(
        prog="pequegrad", description="Look after pequegrad's compiler, cache and machine."
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    machine_commands.add_to(commands)
    cache_commands.add_to(commands)
    export_commands.add_to(commands)
    parsed = parser.parse_args(arguments)
    try:
        return parsed.run(parsed, Printer(sys.stdout))
    except PequegradError as error:
        print(f"pequegrad: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of our pipe, such as head, has seen enough
        sys.stderr.close()
        return 0

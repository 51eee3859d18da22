"""The command `hatlib`: one file per command, thin over the library.

A command module has `add_parser(commands)`, which declares its arguments and sets `run`, and imports what it needs
inside `run`, so that help and usage errors are quick. Errors in the input are one sentence on stderr and exit code 1,
wrong usage is 2, an interruption 130 (143 by SIGTERM).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from hatlib import signals
from hatlib.cli import convert, data, evaluate, features, finetune, lam, list_parts, upscale
from hatlib.errors import HatlibError
from hatlib.version import __version__

COMMANDS = (upscale, list_parts, convert, evaluate, lam, features, finetune, data)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code.

    Args:
        argv: the arguments, by default those of the process.
    """
    parser = argparse.ArgumentParser(prog="hatlib", description="Super-resolution and image restoration with HAT.")
    parser.add_argument("--version", action="version", version=f"hatlib {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_parser(commands)
    args = parser.parse_args(argv)
    try:
        with signals.raise_on_signal():
            return args.run(args)
    except HatlibError as error:
        print(f"hatlib: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        print("hatlib: interrupted", file=sys.stderr)
        return 128 + getattr(error, "signum", 2)
    except BrokenPipeError:  # the reader of our output has gone, e.g. `| head`
        sys.stderr.close()
        return 1

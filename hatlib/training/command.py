"""What the entries in `recipes` share: the command line of a training."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from hatlib.errors import HatlibError
from hatlib.training.config import format_config, load_config, recipe_names
from hatlib.training.loop import train

__all__ = ["main"]


def main(argv: Sequence[str] | None = None, *, description: str = "Train a model.", require_init: bool = False) -> int:
    """Trains what a configuration says; gives 0, 1 after an error, 130 or 143 after SIGINT or SIGTERM.

    Args:
        argv: the arguments, by default those of the process.
        description: what --help says.
        require_init: refuse a configuration that starts from nothing.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("config", metavar="CONFIG", help=f"YAML file, or one that ships: {', '.join(recipe_names())}")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as data.hr=DIR or train.lr=1e-4")
    parser.add_argument("--resume", metavar="auto|DIR", help="go on: from the newest checkpoint if any, or from this")
    parser.add_argument("--print-config", action="store_true", help="print the whole configuration, and do nothing")
    args = parser.parse_intermixed_args(argv)
    try:
        config = load_config(args.config, args.overrides)
        if args.print_config:
            print(format_config(config), end="")
            return 0
        if require_init and config.model.init is None:
            raise HatlibError("Say what to start from: model.init=NAME, a weight file or a saved folder.")
        outcome = train(config, args.resume)
    except HatlibError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        print(f"{parser.prog}: {error or 'interrupted'}; --resume auto goes on", file=sys.stderr)
        return 128 + getattr(error, "signum", 2)
    print(f"The averaged weights are in '{outcome.model}'.")
    return 0

"""`python -m hatlib.data`: cut images into patches, check data sets."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from hatlib.data.checks import check_dataset
from hatlib.data.patches import extract_patches
from hatlib.errors import HatlibError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code: 1 if anything is wrong with the data.

    Args:
        argv: the arguments, by default those of the process.
    """
    args = _parser().parse_args(argv)
    try:
        return args.run(args)
    except HatlibError as error:
        print(f"hatlib.data: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("hatlib.data: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m hatlib.data", description="Prepare and check training data.")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    cut = commands.add_parser(
        "extract-patches",
        help="cut images into overlapping patches",
        description="Cut the images of a folder into overlapping patches, in parallel. Started again, it goes on.",
    )
    cut.add_argument("source", type=Path, metavar="DIR", help="folder of images")
    cut.add_argument("output", type=Path, metavar="OUTPUT", help="folder for the patches")
    cut.add_argument("--size", type=int, default=480, help="side of the patches in pixels (default: %(default)s)")
    cut.add_argument("--step", type=int, default=240, help="distance between them (default: %(default)s)")
    cut.add_argument("--lr", type=Path, metavar="DIR", help="cut these LR images alike; needs --scale")
    cut.add_argument("--scale", type=int, default=1, help="of the LR images")
    cut.add_argument("--workers", type=int, help="threads (default: one per processor)")
    cut.set_defaults(run=_extract)
    check = commands.add_parser(
        "check",
        help="name every problem of a data set",
        description="Decode every image of a data set, compare LR with HR images, and name every problem.",
    )
    check.add_argument("folder", type=Path, metavar="DIR", help="HR images, or a benchmark with HR and LR_bicubic/X4")
    check.add_argument("--lr", type=Path, metavar="DIR", help="folder of LR images; needs --scale")
    check.add_argument("--scale", type=int, help="default: all scales of the benchmark")
    check.add_argument("--patch", type=int, default=0, help="HR patch that images must not be smaller than")
    check.add_argument("--workers", type=int, help="threads (default: one per processor)")
    check.set_defaults(run=_check)
    return parser


def _extract(args: argparse.Namespace) -> int:
    if args.lr is not None and args.scale < 2:
        raise HatlibError("With LR images, say their scale (--scale).")
    with _progress() as bar:
        result = extract_patches(
            args.source,
            args.output,
            size=args.size,
            step=args.step,
            lr=args.lr,
            scale=args.scale,
            workers=args.workers,
            progress=_follow(bar),
        )
    print(f"{result.written} patches written, {result.present} were there already: {args.output}")
    return _problems(result.failures, "images could not be cut")


def _check(args: argparse.Namespace) -> int:
    with _progress() as bar:
        facts, problems = check_dataset(
            args.folder, args.lr, args.scale, patch=args.patch, workers=args.workers, progress=_follow(bar)
        )
    print("\n".join(facts))
    return _problems(problems, "problems")


def _problems(problems: Sequence[str], what: str) -> int:
    if problems:
        print("\n  ".join([f"{len(problems)} {what}:", *problems]), file=sys.stderr)
    return 1 if problems else 0


def _progress() -> Progress:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _follow(bar: Progress):
    task = bar.add_task("images", total=None)
    return lambda done, total: bar.update(task, completed=done, total=total)


if __name__ == "__main__":
    sys.exit(main())

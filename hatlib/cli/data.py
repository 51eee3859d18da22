"""`hatlib data`: check data sets, cut images into patches."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from hatlib.cli.progress import progress_bar, track
from hatlib.errors import HatlibError


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Declares the command and its sub-commands."""
    parser = commands.add_parser(
        "data", help="check and prepare training data", description="Check and prepare training data."
    )
    subcommands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    check = subcommands.add_parser(
        "check",
        help="report every problem of a data set",
        description="Decode every image of a data set, compare LR with HR images, and report every problem.",
    )
    check.add_argument("folder", type=Path, metavar="DIR", help="HR images, or a benchmark with HR and LR_bicubic/X4")
    check.add_argument("--lr", type=Path, metavar="DIR", help="folder of LR images; needs --scale")
    check.add_argument("--scale", type=int, metavar="S", help="scale of the LR images (default: all of the benchmark)")
    check.add_argument("--patch", type=int, default=0, metavar="N", help="report HR images smaller than N pixels")
    extract = subcommands.add_parser(
        "extract-patches",
        help="cut images into overlapping patches",
        description="Cut the images of a folder into overlapping patches. An interrupted run resumes when started "
        "again.",
    )
    extract.add_argument("source", type=Path, metavar="DIR", help="folder of images")
    extract.add_argument("output", type=Path, metavar="OUTPUT", help="output folder")
    extract.add_argument("--size", type=int, default=480, metavar="N", help="patch size in pixels (%(default)s)")
    extract.add_argument("--step", type=int, default=240, metavar="N", help="distance between patches (%(default)s)")
    extract.add_argument("--lr", type=Path, metavar="DIR", help="folder of LR images to cut to match; needs --scale")
    extract.add_argument("--scale", type=int, default=1, metavar="S", help="scale of the LR images")
    for subcommand, run in ((check, run_check), (extract, run_extract)):
        subcommand.add_argument("--workers", type=int, metavar="N", help="threads (default: one per processor)")
        subcommand.set_defaults(run=run)


def run_check(args: argparse.Namespace) -> int:
    """Checks a data set, prints what was found, and returns 1 if there are problems."""
    from hatlib.data.checks import check_dataset

    with progress_bar() as progress:
        facts, problems = check_dataset(
            args.folder,
            args.lr,
            args.scale,
            patch=args.patch,
            workers=args.workers,
            progress=track(progress, "images"),
        )
    print("\n".join(facts), flush=True)
    return _report(problems, "problems")


def run_extract(args: argparse.Namespace) -> int:
    """Cuts the images of a folder and returns 1 if any of them failed."""
    from hatlib.data.patches import extract_patches

    if args.lr is not None and args.scale < 2:
        raise HatlibError(f"--lr needs --scale, 2 or more, got {args.scale}.")
    with progress_bar() as progress:
        result = extract_patches(
            args.source,
            args.output,
            size=args.size,
            step=args.step,
            lr=args.lr,
            scale=args.scale,
            workers=args.workers,
            progress=track(progress, "images"),
        )
    print(f"{result.written} patches written, {result.present} already existed: {args.output}", flush=True)
    return _report(result.failures, "images could not be cut")


def _report(problems: Sequence[str], what: str) -> int:
    if problems:
        print("\n  ".join([f"{len(problems)} {what}:", *problems]), file=sys.stderr)
    return 1 if problems else 0

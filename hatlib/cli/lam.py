"""`hatlib lam`: which input pixels models use, as local attribution maps and diffusion indices."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hatlib.cli.progress import progress_bar, track
from hatlib.cli.shared import add_model_options, check_outputs, find_images, load_models
from hatlib.errors import HatlibError

if TYPE_CHECKING:
    from hatlib.analysis.comparison import LamComparison


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Declares the command."""
    parser = commands.add_parser(
        "lam",
        help="show which input pixels models use",
        description="Local attribution maps (arXiv 2011.11036): which pixels of the input models use to restore a "
        "window of the output, and how many, as the diffusion index. One image gives a figure, a folder a CSV.",
    )
    add = parser.add_argument
    add(
        "image", type=Path, metavar="IMAGE", help="original, of which the input is made by bicubic; or a folder of them"
    )
    add_model_options(parser)
    add("--window", type=_window, metavar="X,Y,SIZE", help="in output pixels (default: 16x16 in the middle)")
    add("-o", "--output", type=Path, metavar="FILE", help="figure of one image (.png), CSV of a folder")
    add("--lr", action="store_true", help="IMAGE is the input, and not the original")
    add("--crop", type=int, metavar="N", help="only NxN input pixels around the window (the paper: 64)")
    add("--sigma", type=float, default=1.2, metavar="V", help="blur at the start of the path, in pixels (%(default)s)")
    add("--fold", type=int, default=50, metavar="N", help="steps of the path (%(default)s)")
    add("--kernel", type=int, default=9, metavar="N", help="side of the blur's kernel (%(default)s)")
    add("--rule", choices=["reference", "trapezoid"], default="reference", help="the paper's sum, or a more exact one")
    add("--alpha", type=float, default=0.5, metavar="A", help="share of the image under a map (%(default)s)")
    add("--batch", type=int, metavar="N", help="steps at once (default: 1 on a CPU, 10 elsewhere)")
    add("--json", type=Path, metavar="FILE", help="write everything but the maps, with full digits")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Attributes, prints the indices, writes the files; 1 if an image or a model failed."""
    from hatlib.analysis.comparison import compare_attributions, load_input
    from hatlib.analysis.figure import draw_lam

    folder = args.image.is_dir()
    files = find_images(args.image)
    _check(args, folder, files.values())
    models, scale = load_models(args)
    load = partial(load_input, scale=scale, window=args.window, is_lr=args.lr, crop=args.crop)
    options = dict(
        scale=scale, sigma=args.sigma, fold=args.fold, kernel_size=args.kernel, rule=args.rule, batch=args.batch
    )
    rows = []
    with progress_bar() as progress:
        for row in compare_attributions(models, files, load, track(progress, "attributions"), **options):
            if not folder and not row.results:
                raise HatlibError(row.errors[0])
            if not folder and args.output is not None:
                draw_lam(args.output, row.results, row.lam_input.hr, args.alpha)
            rows.append(_figures(row, scale))
    _report(args, rows, {"scale": scale, "lr": args.lr, "crop": args.crop, **options}, folder)
    return 1 if any(row["errors"] for row in rows) else 0


def _window(text: str) -> tuple[int, int, int]:
    try:
        x, y, side = (int(part) for part in text.split(","))
    except ValueError:
        x, y, side = 0, 0, 0
    if side < 1 or min(x, y) < 0:
        raise argparse.ArgumentTypeError(f"takes three whole numbers X,Y,SIZE, from 0 and 1 on, not {text!r}")
    return x, y, side


def _check(args: argparse.Namespace, folder: bool, files: Iterable[Path]) -> None:
    """Refuses what is wrong whatever the model: loading one takes seconds."""
    from hatlib.analysis.lam import check_options
    from hatlib.imageio import check_output

    check_options(args.sigma, args.fold, args.kernel, args.rule, args.batch)
    if args.crop is not None and args.crop < 1:
        raise HatlibError(f"--crop takes a number of pixels, 1 or more, not {args.crop}.")
    if not 0 <= args.alpha <= 1:
        raise HatlibError(f"--alpha takes a share from 0 to 1, not {args.alpha}.")
    if args.output is not None and not folder:
        check_output(args.output)
    if folder and args.output is not None and args.output.suffix.lower() != ".csv":
        raise HatlibError(f"A folder gives a CSV: call it '{args.output.with_suffix('.csv')}'.")
    check_outputs((args.output, args.json), files)


def _figures(row: LamComparison, scale: int) -> dict[str, Any]:
    """What is told of an image; the maps are not kept. The window is that in the whole output."""
    values = ("di", "gini", "completeness", "difference", "gradients")
    place = {"input": None, "origin": None, "window": None}
    if lam_input := row.lam_input:
        x, y, side = lam_input.window
        left, top = lam_input.origin
        place = {
            "input": list(lam_input.lr.shape[1:]),
            "origin": [left, top],
            "window": [x + left * scale, y + top * scale, side],
        }
    models = {name: {value: getattr(r, value) for value in values} for name, r in row.results.items()}
    return {"image": row.image, **place, "models": models, "errors": list(row.errors)}


def _report(args: argparse.Namespace, rows: list[dict[str, Any]], options: dict[str, Any], folder: bool) -> None:
    from hatlib.analysis.comparison import as_csv
    from hatlib.atomic import write_text
    from hatlib.evaluation.report import markdown

    done = [row for row in rows if row["models"]]
    if args.json is not None:
        write_text(args.json, json.dumps({**options, "images": rows}, indent=1, ensure_ascii=False) + "\n")
    if folder and done:
        table = as_csv({row["image"]: {name: v["di"] for name, v in row["models"].items()} for row in done})
        if args.output is None:
            print(table, end="", flush=True)
        else:
            write_text(args.output, table)
    elif done:
        lines = [[n, f"{v['di']:.2f}", f"{v['completeness']:.2%}"] for n, v in done[0]["models"].items()]
        print(markdown(["model", "diffusion index", "error of the sum"], lines), flush=True)
    if args.output is not None and done:
        print(args.output, flush=True)
    if len({tuple(row["input"]) for row in done}) > 1:
        print("The inputs differ in size, on which diffusion indices depend: --crop makes them alike.", file=sys.stderr)
    if failures := [message for row in rows for message in row["errors"]]:
        failed = sum(bool(row["errors"]) for row in rows)
        print(f"{failed} of {len(rows)} images failed:", file=sys.stderr)
        for message in failures:
            print(f"  {message}", file=sys.stderr)

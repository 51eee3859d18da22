"""`hatlib evaluate`: PSNR and SSIM of models on benchmarks, by the papers' protocol."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from hatlib.cli.progress import progress_bar, track
from hatlib.cli.shared import MODEL_HELP, add_device_option, check_outputs
from hatlib.errors import HatlibError

if TYPE_CHECKING:
    from hatlib.data import ImagePairs
    from hatlib.evaluation import Candidate, Evaluation


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Declares the command."""
    parser = commands.add_parser(
        "evaluate",
        help="measure models on benchmarks",
        description="Measure PSNR and SSIM by the papers' protocol: 8-bit results, borders left out, luma. Bicubic "
        "interpolation comes first, published values stand beside ours. For several processes start it as "
        "`torchrun --nproc_per_node N -m hatlib evaluate ...`.",
    )
    parser.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help=MODEL_HELP,
    )
    parser.add_argument(
        "--data",
        nargs="+",
        type=Path,
        required=True,
        metavar="DIR",
        help="benchmark with HR and LR_bicubic/X4 in it, or a folder of HR images, of which LR images are made",
    )
    parser.add_argument("--lr", nargs="+", type=Path, default=[], metavar="DIR", help="LR folder of each --data folder")
    parser.add_argument("--scale", type=int, metavar="S", help="default: that of the models")
    parser.add_argument("--self-ensemble", action="store_true", help="average over eight orientations of the input")
    parser.add_argument(
        "--tile", type=int, default=0, metavar="N", help="largest tile in LR pixels (default: no tiles)"
    )
    add_device_option(parser)
    parser.add_argument("--per-image", action="store_true", help="print a line per image too")
    parser.add_argument("--save-images", type=Path, metavar="DIR", help="save results as DIR/MODEL/DATA/NAME_xS.png")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything, with full digits")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw a sheet to compare by eye (.png)")
    parser.add_argument(
        "--plot-images",
        nargs="+",
        default=[],
        metavar="NAME",
        help="images of the sheet (default: of each data set, the two worst for bicubic)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Evaluates, prints the tables, writes the files; 1 if an image failed."""
    from hatlib.evaluation import resolve_models
    from hatlib.imageio import check_output

    if args.tile < 0:
        raise HatlibError(f"--tile takes a number of pixels, or 0 for whole images, not {args.tile}.")
    if args.plot is not None:
        check_output(args.plot)
    check_outputs((args.plot, args.json))
    rows, scale = resolve_models(args.models, args.scale)
    data = _data(args, scale)
    try:
        return _evaluate(args, rows, data)
    finally:
        _leave_processes()


def _evaluate(args: argparse.Namespace, rows: list[Candidate], data: dict[str, ImagePairs]) -> int:
    from hatlib.atomic import write_text
    from hatlib.evaluation import as_json, as_table, evaluate
    from hatlib.evaluation.report import per_image_table

    main_process = os.environ.get("RANK", "0") == "0"
    with progress_bar(main_process) as progress:
        evaluation = evaluate(
            rows,
            data,
            device=args.device,
            tile=args.tile or None,
            self_ensemble=args.self_ensemble,
            save_images=args.save_images,
            progress=track(progress, "images"),
        )
    if main_process:
        if args.per_image:
            print(per_image_table(evaluation), end="\n\n")
        print(as_table(evaluation), flush=True)
        if args.json is not None:
            write_text(args.json, as_json(evaluation))
        _report_failures(evaluation)
        if args.plot is not None:
            _plot(args, rows, data, evaluation)
    return 1 if evaluation.failures else 0


def _data(args: argparse.Namespace, scale: int) -> dict[str, ImagePairs]:
    """The data sets by their names, which are those of the folders."""
    from hatlib.data import open_benchmarks

    if args.lr and len(args.lr) != len(args.data):
        raise HatlibError(f"--lr names {len(args.lr)} folders and --data {len(args.data)}: one for each, in its order.")
    return open_benchmarks(args.data, scale, args.lr)


def _plot(args: argparse.Namespace, rows: list[Candidate], data: dict[str, ImagePairs], evaluation: Evaluation) -> None:
    from hatlib.evaluation.sheet import draw_sheet, sheet_rows

    drawn = sheet_rows(rows, data, evaluation, args.plot_images)
    draw_sheet(args.plot, drawn)
    print(args.plot, flush=True)


def _report_failures(evaluation: Evaluation) -> None:
    failures = evaluation.failures
    messages = list(dict.fromkeys(f"{f.data}: {f.error}" for f in failures))
    if messages:
        images = len({(f.data, f.image) for f in failures})
        print(f"{images} images failed, so there is no mean of their data set:", file=sys.stderr)
        for message in messages:
            print(f"  {message}", file=sys.stderr)


def _leave_processes() -> None:
    """Ends the process group, if there is one: a process that exits in it may abort the others."""
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()

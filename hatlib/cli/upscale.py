"""`hatlib upscale`: enlarge an image file, or all those of a folder."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from hatlib.cli import interruption
from hatlib.errors import HatlibError

if TYPE_CHECKING:
    from rich.progress import Progress

    from hatlib.inference import Upscaler


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Declares the command."""
    parser = commands.add_parser(
        "upscale",
        help="enlarge an image, or all images of a folder",
        description="Enlarge an image (PNG, JPEG, WebP, TIFF, BMP, PNM), or all images of a folder. The result is "
        "called NAME_x4.png, beside the input or, for a folder, in FOLDER_x4; its path is printed.",
    )
    parser.add_argument("input", type=Path, metavar="INPUT", help="an image file or a folder of them")
    parser.add_argument("-o", "--output", type=Path, help="output file, or folder")
    parser.add_argument("--model", default="hat_t_x4", metavar="NAME", help="one of `hatlib models` (%(default)s)")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="weights for the model: .safetensors or .pth")
    parser.add_argument(
        "--tile",
        type=int,
        default=256,
        metavar="N",
        help="largest tile in pixels, 0 for none (default: %(default)s)",
    )
    parser.add_argument("--device", metavar="D", help="cpu, cuda, cuda:1, mps... (default: a GPU if there is one)")
    parser.add_argument("--overwrite", action="store_true", help="replace outputs that exist")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Upscales everything, lists the failures, and returns 0 if there were none."""
    _check_input(args)
    upscaler = _load(args)
    jobs, skipped = _plan(args.input, args.output, upscaler.scale, args.overwrite)
    failures: list[HatlibError] = []
    with _progress() as progress:
        everything = progress.add_task("images", total=len(jobs), visible=len(jobs) > 1)
        for source, target in jobs:
            interruption.check()
            try:
                if isinstance(target, HatlibError):
                    raise target
                _upscale_file(upscaler, source, target, progress)
                print(target, flush=True)
            except HatlibError as error:
                if not args.input.is_dir():
                    raise
                failures.append(error)
            progress.advance(everything)
    if skipped:
        print(f"{skipped} of {skipped + len(jobs)} skipped: output exists (--overwrite replaces it)", file=sys.stderr)
    if failures:
        print(f"{len(failures)} of {skipped + len(jobs)} images failed:", file=sys.stderr)
        for error in failures:
            print(f"  {error}", file=sys.stderr)
    return 1 if failures else 0


def _check_input(args: argparse.Namespace) -> None:
    """Refuses what is wrong whatever the model: loading one takes seconds."""
    if not args.input.exists():
        raise HatlibError(f"There is no file or folder '{args.input}'.")
    if args.tile < 0:
        raise HatlibError(f"--tile takes a number of pixels, or 0 for whole images, not {args.tile}.")
    if args.output is not None and args.input.is_file():
        _target_of(args.input, args.output, 1)
    if args.output is not None and args.input.is_dir() and args.output.exists() and not args.output.is_dir():
        raise HatlibError(f"Cannot write the images of a folder to '{args.output}': it is a file.")


def _load(args: argparse.Namespace) -> Upscaler:
    import torch

    from hatlib import create_model
    from hatlib.inference import Upscaler

    model = create_model(args.model, pretrained=args.checkpoint is None, checkpoint_path=args.checkpoint)
    device = args.device
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    return Upscaler(model, tile=args.tile or None, device=device)


def _plan(source: Path, output: Path | None, scale: int, overwrite: bool) -> tuple[list[tuple], int]:
    """Pairs of input and output, or of input and the error to list it with; and how many are done already."""
    if source.is_file():
        target = _target_of(source, output or source.parent, scale)
        if target.exists() and not overwrite:
            raise HatlibError(f"'{target}' exists; --overwrite replaces it.")
        return [(source, target)], 0

    from hatlib.imageio import SUFFIXES

    files = sorted(p for p in source.iterdir() if p.suffix.lower() in SUFFIXES and p.name[0] != "." and p.is_file())
    if not files:
        raise HatlibError(f"The folder '{source}' holds no images ({', '.join(SUFFIXES)}).")
    folder = output or source.resolve().with_name(f"{source.resolve().name}_x{scale}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HatlibError(f"Cannot make the folder '{folder}': {error.strerror}.") from error
    owners: dict[Path, Path] = {}
    jobs, skipped = [], 0
    for file in files:
        try:
            target = _target_of(file, folder, scale)
            if (owner := owners.setdefault(target, file)) != file:
                raise HatlibError(f"'{owner}' and '{file}' would both become '{target}': rename one of them.")
        except HatlibError as error:
            jobs.append((file, error))
            continue
        if target.exists() and not overwrite:
            skipped += 1
        else:
            jobs.append((file, target))
    return jobs, skipped


def _target_of(source: Path, output: Path, scale: int) -> Path:
    """Output file of one input: `output` itself, or the default name in it if it is a folder."""
    from hatlib.imageio import check_output

    target = output / f"{source.stem}_x{scale}.png" if output.is_dir() else output
    check_output(target)
    if target.exists() and target.samefile(source):
        raise HatlibError(f"The output '{target}' is the input itself: choose another name.")
    return target


def _upscale_file(upscaler: Upscaler, source: Path, target: Path, progress: Progress) -> None:
    import torch

    from hatlib.imageio import check_output, read_image, write_image

    image = read_image(source)
    check_output(target, image)
    task = progress.add_task(source.name, total=None)

    def tile_done(done: int, total: int) -> None:
        interruption.check()
        progress.update(task, completed=done, total=total)

    try:
        pixels = upscaler(image.pixels, progress=tile_done)
        write_image(target, image.with_pixels(pixels))
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise HatlibError(f"Not enough memory for '{source}': choose a smaller --tile than {upscaler.tile}.") from error
    finally:
        progress.remove_task(task)


def _progress() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # Printed paths may go to a pipe: only on a terminal does rich have to put them above the bar.
    redirect = sys.stdout.isatty()
    return Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal, redirect_stdout=redirect
    )

"""`hatlib upscale`: enlarge image files, folders of them, or what a pattern finds."""

from __future__ import annotations

import argparse
import math
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from hatlib.cli.progress import progress_bar
from hatlib.cli.shared import MODEL_HELP, add_device_option
from hatlib.errors import HatlibError

if TYPE_CHECKING:
    from torch import nn

    from hatlib.imageio import Header
    from hatlib.inference import Upscaler

DEFAULT_MODEL = "hat_t_x4"
REAL_WORLD_MODEL = "hat_x4.real_gan"
FORMATS = {"png": ".png", "jpeg": ".jpg", "webp": ".webp", "tiff": ".tif", "bmp": ".bmp", "pnm": ".ppm"}


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Declares the command."""
    parser = commands.add_parser(
        "upscale",
        help="enlarge images",
        description="Enlarge images (PNG, JPEG, WebP, TIFF, BMP, PNM). The result is called NAME_x4.png, beside the "
        "input or, for a folder, under the same relative name in FOLDER_x4; its path is printed. What is done already "
        "is skipped, so a run that was interrupted goes on when started again.",
    )
    add = parser.add_argument
    add("input", nargs="+", metavar="INPUT", help="files, folders (with all below), patterns such as 'a/**/*.png'")
    add("-o", "--output", type=Path, help="output file for a single file, else folder")
    add("--scale", type=float, metavar="S", help="picks the model of the family; resizes the result for one in between")
    add("--model", metavar="MODEL", help=f"{MODEL_HELP} (default: {DEFAULT_MODEL})")
    add("--checkpoint", type=Path, metavar="FILE", help="weight file for the network that --model names")
    add("--format", choices=[*FORMATS, "same"], help="of the results (default: png); same: as each input")
    add("--quality", type=int, default=95, metavar="Q", help="of JPEG and WebP, 1 to 100 (%(default)s)")
    add("--suffix", default="_x{scale}", help="appended to names; {scale} and {model} are filled in (%(default)s)")
    add("--tile", type=_tile, default=256, metavar="N", help="largest tile, 0: none, auto: by memory (%(default)s)")
    add("--overlap", type=int, metavar="N", help="pixels that tiles share at least (default: by the model)")
    add("--batch", type=int, default=1, metavar="N", help="tiles at once, faster on a GPU (%(default)s)")
    add("--self-ensemble", action="store_true", help="mean over eight orientations: better, eight times as long")
    add("--dtype", choices=["float32", "float16", "bfloat16"], default="float32", help="to compute in (%(default)s)")
    add_device_option(parser)
    add("--overwrite", action="store_true", help="replace outputs that exist")
    add("--jobs", type=int, default=2, metavar="N", help="images to read and write ahead (%(default)s)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Upscales everything, lists the failures, and returns 0 if there were none."""
    _check(args)
    model, label, clean = _load(args)
    scale = args.scale or model.upscale
    suffix = _suffix(args.suffix, scale, label)
    extension = FORMATS.get(args.format or "png")

    from hatlib.atomic import remove_stale
    from hatlib.cli.pipeline import Pipeline
    from hatlib.cli.plan import plan

    share = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))  # of torchrun and accelerate
    tasks, skipped = plan(
        args.input,
        args.output,
        lambda source: f"{source.stem}{suffix}{extension or source.suffix}",
        suffix or "_out",
        args.overwrite,
        share,
    )
    for folder in {task.target.parent for task in tasks if isinstance(task.target, Path)}:
        remove_stale(folder)
    hints: dict[str, str] = {}

    def note_jpeg(path: Path, header: Header) -> None:
        if header.kind == "jpeg" and clean:
            hints.setdefault("jpeg", _jpeg_hint(path, label))

    with progress_bar() as progress:
        pipeline = Pipeline(
            _upscaler(args, model),
            resize=scale / model.upscale,
            quality=args.quality,
            jobs=args.jobs,
            on_header=note_jpeg,
            on_result=lambda path: print(path, flush=True),
        )
        failures = pipeline.run(tasks, progress)
    for hint in filter(None, hints.values()):
        print(hint, file=sys.stderr)
    total = skipped + len(tasks)
    if failures and total == 1 and share[1] == 1 and not Path(args.input[0]).is_dir():
        raise failures[0]
    if skipped:
        print(f"{skipped} of {total} skipped: output exists (--overwrite replaces it)", file=sys.stderr)
    if failures:
        print(f"{len(failures)} of {total} images failed:", file=sys.stderr)
        for error in failures:
            print(f"  {error}", file=sys.stderr)
    return 1 if failures else 0


def _tile(text: str) -> int | str:
    return text if text == "auto" else int(text)


def _check(args: argparse.Namespace) -> None:
    """Refuses what is wrong whatever the model: loading one takes seconds."""
    if isinstance(args.tile, int) and args.tile < 0:
        raise HatlibError(f"--tile takes a number of pixels, 0 for whole images, or auto, not {args.tile}.")
    if args.scale is not None and not (math.isfinite(args.scale) and args.scale > 0):
        raise HatlibError(f"--scale takes a number above 0, not {args.scale}.")
    if not 1 <= args.quality <= 100:
        raise HatlibError(f"--quality is 1 to 100, not {args.quality}.")
    if args.jobs < 1:
        raise HatlibError(f"--jobs is 1 or more, not {args.jobs}.")
    for entry in args.input:
        if not Path(entry).exists() and not set("*?[") & set(entry):
            raise HatlibError(f"There is no file or folder '{entry}'.")
    single = len(args.input) == 1 and Path(args.input[0]).is_file()
    if single and args.output is not None and not args.output.is_dir():
        from hatlib.cli.plan import plan
        from hatlib.imageio import check_output

        kind = check_output(args.output)
        if args.format not in (None, "same", kind):
            raise HatlibError(f"'{args.output}' is to be {kind} by its name and {args.format} by --format: drop one.")
        plan(args.input, args.output, str, "", overwrite=True)  # refuses the input itself


def _load(args: argparse.Namespace) -> tuple[nn.Module, str, bool]:
    """The model, its label, and whether it is known to be trained on clean images."""
    from hatlib.hub.resolve import published_weights, resolve
    from hatlib.load import create_model, load

    scale = None if args.scale is None else math.ceil(args.scale)
    text = str(args.checkpoint) if args.checkpoint and not args.model else args.model or DEFAULT_MODEL
    source = resolve(text, scale=scale)
    if source.kind == "name" and args.checkpoint is not None:
        model = create_model(source.place, checkpoint_path=args.checkpoint)
    else:
        if source.kind == "name" and args.scale is not None:
            source = resolve(model_of_scale(source.place, args.scale))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model = load(source.text, scale=scale if source.kind == "bicubic" else None)
        for warning in caught:
            print(f"note: {warning.message}", file=sys.stderr)
    if not hasattr(model, "upscale"):
        raise HatlibError(f"{source.text!r} does not declare its scale (an attribute `upscale`).")
    weights = published_weights(source)
    label = source.label.split("/")[-1]
    return _fitting(model, args.scale), label, weights is not None and weights.degradation == "bicubic"


def _fitting(model: nn.Module, scale: float | None) -> nn.Module:
    if scale is not None and not 0 < scale <= model.upscale:
        raise HatlibError(
            f"The model enlarges by {model.upscale}, less than --scale {scale:g}: choose another --model."
        )
    return model


def model_of_scale(name: str, scale: float) -> str:
    """The model of the same family, size and weights with the least scale that is enough.

    Raises:
        HatlibError: if there is none.
    """
    from hatlib.networks import model_info, split_name

    info, tag = model_info(name), split_name(name)[1]
    found = {
        known: f"{sibling.arch}.{tag}" if tag else sibling.arch
        for known, sibling in info.siblings.items()
        if (tag in sibling.tags if tag else sibling.weights)
    }
    enough = [known for known in found if known >= scale]
    if not enough:
        largest = f"up to x{max(found)}" if found else "no pretrained weights"
        raise HatlibError(f"For --scale {scale:g} '{name}' has {largest}; choose another --model (`hatlib models`).")
    return found[min(enough)]


def _upscaler(args: argparse.Namespace, model: nn.Module) -> Upscaler:
    import torch

    from hatlib.device import resolve_device
    from hatlib.inference import Upscaler

    return Upscaler(
        model,
        tile=args.tile or None,
        overlap=args.overlap,
        batch=args.batch,
        self_ensemble=args.self_ensemble,
        dtype=None if args.dtype == "float32" else getattr(torch, args.dtype),
        device=resolve_device(args.device),
    )


def _suffix(template: str, scale: float, label: str) -> str:
    try:
        suffix = template.format(scale=f"{scale:g}", model=label)
    except (KeyError, IndexError, ValueError) as error:
        raise HatlibError(f"--suffix '{template}' may hold {{scale}} and {{model}}, and no other braces.") from error
    if "/" in suffix or os.sep in suffix or "\0" in suffix:
        raise HatlibError(f"--suffix '{template}' is part of a file name and can't hold a separator of folders.")
    return suffix


def _jpeg_hint(path: Path, label: str) -> str:
    from hatlib.networks import model_info

    try:
        model_info(REAL_WORLD_MODEL)
    except HatlibError:
        return ""
    return (
        f"note: '{path}' is a JPEG, and {label} was trained on clean images, so it sharpens compression artifacts too; "
        f"for photos as cameras and the web give them there is --model {REAL_WORLD_MODEL}."
    )

"""`hatlib features`: feature maps of models, and how much of the window grid shows in them."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from hatlib.cli.progress import progress_bar, track
from hatlib.cli.shared import add_model_options, check_outputs, find_images, load_models
from hatlib.errors import HatlibError, describe_error

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hatlib.analysis import Blocking


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Declares the command."""
    parser = commands.add_parser(
        "features",
        help="show feature maps and blocking artifacts of models",
        description="Measure blocking artifacts: the differences across the borders of windows in the feature maps of "
        "a model, relative to all other differences, after each group and as means over the images. The figure shows "
        "the feature maps for the first image.",
    )
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="input images, or folders of them")
    add_model_options(parser)
    parser.add_argument("--window", type=int, metavar="N", help="window size in pixels (default: that of each model)")
    parser.add_argument("-o", "--output", type=Path, metavar="FIGURE", help="figure of the first image (.png)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the ratios of every image, with full digits")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Computes the feature maps, prints the ratios, writes the files."""
    from hatlib.analysis import draw_features
    from hatlib.atomic import write_text
    from hatlib.data import read_rgb
    from hatlib.evaluation.report import markdown

    files = list(dict.fromkeys(file for entry in args.images for file in find_images(entry).values()))
    _check(args, files)
    models, _ = load_models(args)
    windows = {name: _window(name, model, args.window) for name, model in models.items()}
    first: dict[str, tuple[list[Tensor], int]] = {}
    found: dict[str, list[list[Blocking]]] = {name: [] for name in models}
    with progress_bar() as progress:
        done = track(progress, "images")
        for i, file in enumerate(files):
            image = read_rgb(file)
            for j, (name, model) in enumerate(models.items()):
                maps, ratios = _measure(name, model, file, image, windows[name])
                first.setdefault(name, (maps, windows[name]))
                found[name].append(ratios)
                done(i + (j + 1) / len(models), len(files))
    means = {name: _means(ratios) for name, ratios in found.items()}
    if args.output is not None:
        draw_features(args.output, first)
    if args.json is not None:
        images = [
            {"image": str(file), "models": {name: [_figures(b) for b in found[name][i]] for name in models}}
            for i, file in enumerate(files)
        ]
        summary = {
            name: {"window": windows[name], "groups": [_figures(blocking) for blocking in groups]}
            for name, groups in means.items()
        }
        write_text(args.json, json.dumps({"means": summary, "images": images}, indent=1, ensure_ascii=False) + "\n")
    lines = [
        [name, str(i), *(f"{value:.3f}" for value in (blocking.ratio, blocking.half, blocking.control))]
        for name, groups in means.items()
        for i, blocking in enumerate(groups, 1)
    ]
    print(markdown(["model", "group", "at borders", "at half", "elsewhere"], lines), flush=True)
    if args.output is not None:
        print(args.output, flush=True)
    return 0


def _check(args: argparse.Namespace, files: Sequence[Path]) -> None:
    """Checks everything that does not depend on the models before they are loaded, which takes seconds."""
    from hatlib.imageio import check_output

    if args.window is not None and args.window < 3:
        raise HatlibError(f"--window must be at least 3 pixels, got {args.window}.")
    if args.output is not None:
        check_output(args.output)
    check_outputs((args.output, args.json), files)


def _window(name: str, model: nn.Module, window: int | None) -> int:
    """Window size of a model that has feature maps; HatlibError for all other models."""
    from hatlib.inference.runner import tile_multiple

    if not hasattr(model, "forward_intermediates"):
        raise HatlibError(f"{name} has no feature maps: it lacks timm's method forward_intermediates.")
    window = tile_multiple(model) if window is None else window
    if window == 1:
        raise HatlibError(f"{name} has no windows: set the grid to look for, for example --window 16.")
    return window


def _measure(
    name: str, model: nn.Module, file: Path, image: Tensor, window: int
) -> tuple[list[Tensor], list[Blocking]]:
    from hatlib.analysis import blocking_ratio, feature_maps

    with _explain_errors(name, file):
        maps = feature_maps(model, image)
        ratios = [blocking_ratio(features, window) for features in maps]
        if not all(math.isfinite(value) for blocking in ratios for value in blocking.profile):
            raise HatlibError("The feature maps are not finite.")
    return maps, ratios


def _means(ratios: Sequence[Sequence[Blocking]]) -> list[Blocking]:
    """Means over images for each group. The values of `Blocking` are linear in the profile."""
    from hatlib.analysis import Blocking

    groups = zip(*ratios, strict=True)
    return [Blocking(tuple(map(mean, zip(*(b.profile for b in group), strict=True)))) for group in groups]


def _figures(blocking: Blocking) -> dict[str, Any]:
    values = {name: getattr(blocking, name) for name in ("ratio", "half", "control")}
    return {**values, "profile": list(blocking.profile)}


@contextmanager
def _explain_errors(name: str, file: Path) -> Iterator[None]:
    """Turns every exception into a HatlibError that names the model and the file."""
    from hatlib.inference.memory import is_out_of_memory

    try:
        yield
    except HatlibError as error:
        raise HatlibError(f"{name} on '{file}': {error}") from error
    except Exception as error:  # networks from outside hatlib may raise anything
        if is_out_of_memory(error):
            raise HatlibError(f"Not enough memory for {name} on '{file}': use a smaller image.") from error
        raise HatlibError(f"{name} fails on '{file}': {describe_error(error)}.") from error

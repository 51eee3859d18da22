"""Options and checks that several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from hatlib.errors import HatlibError

if TYPE_CHECKING:
    from torch import nn


MODEL_HELP = (
    "a name from `hatlib models` ('hat_s_x4', 'hat_x4.real_gan'), 'hf-hub:org/repo', a saved directory, a weight file, "
    "an ONNX model, 'module:function' that returns a network, or 'bicubic'"
)
"""Help text of every option that takes a model; `hatlib.hub.resolve` is the rule."""


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """Declares --device."""
    parser.add_argument("--device", metavar="D", help="cpu, cuda, cuda:1, mps, ... (default: a GPU if available)")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Declares --model, --scale and --device, which `load_models` reads."""
    parser.add_argument(
        "--model",
        action="append",
        dest="models",
        metavar="MODEL",
        help=f"{MODEL_HELP}; may be repeated (default: hat_t_x4)",
    )
    parser.add_argument("--scale", type=int, metavar="S", help="scale of models that do not declare their own")
    add_device_option(parser)


def load_models(args: argparse.Namespace) -> tuple[dict[str, nn.Module], int]:
    """Loads the networks of --model onto --device and returns them by name, with their common scale."""
    from hatlib.device import resolve_device
    from hatlib.evaluation import resolve_models
    from hatlib.models import Bicubic

    device = resolve_device(args.device)
    specs = args.models or ["hat_t_x4"]
    candidates, scale = resolve_models(specs, args.scale)
    models = {c.name: c.model or Bicubic(scale) for c in candidates if c.model is not None or "bicubic" in specs}
    return {name: model.to(device) for name, model in models.items()}, scale


def find_images(path: Path) -> dict[str, Path]:
    """Returns an image file, or all images of a folder, by name (relative to the folder).

    Raises:
        HatlibError: if the path does not exist, or the folder contains no images.
    """
    from hatlib.data import index_images

    if path.is_dir():
        return {name: path / name for name in index_images(path)}
    if not path.exists():
        raise HatlibError(f"There is no file or folder '{path}'.")
    return {path.name: path}


def check_outputs(outputs: Iterable[Path | None], inputs: Iterable[Path] = ()) -> None:
    """Checks before the work starts that output files can be written and replace no input or other output.

    Raises:
        HatlibError: if a folder does not exist, or a path is a folder, an input, or given twice.
    """
    taken = {path.resolve() for path in inputs}
    for path in filter(None, outputs):
        if not path.parent.is_dir():
            raise HatlibError(f"Cannot write '{path}': there is no folder '{path.parent}'.")
        if path.is_dir():
            raise HatlibError(f"Cannot write '{path}': it is a folder.")
        if path.resolve() in taken:
            raise HatlibError(f"The output '{path}' is an input or another output: choose another name.")
        taken.add(path.resolve())

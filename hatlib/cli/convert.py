"""`hatlib convert`: weight files from one form to another."""

from __future__ import annotations

import argparse
from pathlib import Path

from hatlib.cli.shared import MODEL_HELP
from hatlib.errors import HatlibError


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Declares the command."""
    parser = commands.add_parser(
        "convert",
        help="convert weights between .pth, .safetensors and saved directories",
        description="Convert weights between checkpoints (.pth), .safetensors and saved directories. The architecture "
        "is detected. OUTPUT is a weight file if it ends in .pth, .pt or .safetensors, else a directory.",
    )
    parser.add_argument("input", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="a weight file or a directory")
    parser.add_argument(
        "--layout",
        choices=("hatlib", "published"),
        default="hatlib",
        help="'published' is what the authors' code, spandrel and chaiNNer load (default: %(default)s)",
    )
    parser.add_argument(
        "--ema",
        action=argparse.BooleanOptionalAction,
        help="take the averaged weights of a checkpoint, or the others (default: the averaged ones if there are any)",
    )
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help="default: as they are")
    parser.add_argument("--overwrite", action="store_true", help="replace an output that exists")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Loads, converts and writes."""
    import torch

    from hatlib.checkpoint import WEIGHT_SUFFIXES, write_state_dict
    from hatlib.hub import PretrainedModel
    from hatlib.load import load

    to_file = args.output.suffix in WEIGHT_SUFFIXES
    if args.layout == "published" and not to_file:
        raise HatlibError("A saved directory has hatlib's layout; for the published one name a .pth or .safetensors.")
    if args.output.exists() and not args.overwrite and (to_file or any(args.output.iterdir())):
        raise HatlibError(f"'{args.output}' exists; --overwrite replaces it.")
    model = load(args.input, ema=args.ema, dtype="auto")
    if not isinstance(model, PretrainedModel):
        raise HatlibError(f"'{args.input}' is a {type(model).__name__}, which hatlib runs but does not write.")
    model = model.to(dtype=getattr(torch, args.dtype) if args.dtype else None)
    config = model.config
    if to_file:
        state_dict = model.published_state_dict() if args.layout == "published" else model.state_dict()
        write_state_dict(
            state_dict, args.output, {key: config[key] for key in ("architecture", "model_args") if key in config}
        )
    else:
        model.save_pretrained(args.output)
    print(f"{config.get('architecture', type(model).__name__)}, {model.num_parameters():,} parameters: {args.output}")
    return 0

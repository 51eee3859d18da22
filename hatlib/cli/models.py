"""`hatlib models`: what can be created by name."""

from __future__ import annotations

import argparse

from hatlib.errors import HatlibError


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Declares the command."""
    parser = commands.add_parser("models", help="list the models", description="List the models that hatlib knows.")
    parser.add_argument("pattern", nargs="?", metavar="PATTERN", help="only names that match, such as 'hat_*_x4'")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints a line per model: name, scale, task, parameters, whether there are pretrained weights."""
    import torch

    from hatlib.load import create_model
    from hatlib.registry import list_models, model_info

    names = list_models(args.pattern) if args.pattern else list_models()
    if not names:
        raise HatlibError(f"No model matches '{args.pattern}'; `hatlib models` lists them all.")
    width = max(map(len, names))
    print(f"{'name':{width}}  scale  {'task':14}  {'parameters':>12}  pretrained")
    for name in names:
        info = model_info(name)
        with torch.device("meta"):  # shapes without memory
            parameters = sum(p.numel() for p in create_model(name).parameters())
        pretrained = "yes" if info.weights else "no"
        # Line by line: building all of them takes a while.
        print(f"{name:{width}}  {f'x{info.scale}':5}  {info.task:14}  {parameters:12,}  {pretrained}", flush=True)
    return 0

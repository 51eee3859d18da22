"""`hatlib list`: registered parts of every kind; `hatlib models`: the models alone."""

from __future__ import annotations

import argparse
import fnmatch
import os
from typing import TYPE_CHECKING

from hatlib.errors import HatlibError

if TYPE_CHECKING:
    from hatlib.networks import ModelInfo, Weights


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Declares both commands."""
    parser = commands.add_parser(
        "list",
        help="list registered parts: models, heads, attentions, ...",
        description="List the parts that hatlib and installed plugins have registered, with the package of each.",
    )
    parser.add_argument("kind", nargs="?", metavar="KIND", help="models, heads, attentions, ... (default: all kinds)")
    parser.add_argument("pattern", nargs="?", metavar="PATTERN", help="only names that match, such as 'hat_*_x4'")
    parser.set_defaults(run=run)
    models = commands.add_parser(
        "models", help="list the models", description="List the models, as `hatlib list models`."
    )
    models.add_argument("pattern", nargs="?", metavar="PATTERN", help="only names that match, such as 'hat_*_x4'")
    models.set_defaults(run=run, kind="models")


def run(args: argparse.Namespace) -> int:
    """Prints a table for each kind."""
    from hatlib.errors import similar_names
    from hatlib.registry import registries

    kinds = {f"{kind}s": kind for kind in registries}
    if args.kind is not None and args.kind not in kinds:
        hint = similar_names(args.kind, kinds)
        raise HatlibError(f"Unknown kind {args.kind!r}.{hint} It is one of {', '.join(kinds)}.")
    found = False
    for plural in [args.kind] if args.kind else kinds:
        if plural == "models":
            found |= _list_models(args.pattern or "*")
        else:
            found |= _list_parts(kinds[plural], args.pattern or "*")
    if not found:
        raise HatlibError(f"Nothing matches '{args.pattern}'; `hatlib list {args.kind or ''}` lists all names.")
    return 0


def _list_parts(kind: str, pattern: str) -> bool:
    from hatlib.registry import registries

    registry = registries[kind]
    names = [name for name in registry.names() if fnmatch.fnmatch(name, pattern)]
    if names:
        width = max(len(kind), *(len(repr(name)) for name in names))
        print(f"{kind:{width}}  package", flush=True)
        for name in names:
            print(f"{name!r:{width}}  {registry.owner(name).partition('.')[0]}", flush=True)
        print()
    return bool(names)


def _list_models(pattern: str) -> bool:
    """A row per arch, and a row per published weight file of it."""
    from hatlib.networks import list_models, model_info

    names = list_models(pattern)
    if not names:
        return False
    infos = [model_info(name) for name in names]
    width = max(len(name) for info in infos for name in (info.arch, *_tagged(info)))
    print(f"{'model':{width}}  scale  {'task':14}  {'parameters':>12}  {'weights':>8}  package or license")
    for info in infos:
        parameters = _parameters(info)
        weights = "" if info.tags else "none"
        package = info.module.partition(".")[0]
        scale = f"x{info.scale}"
        # Row by row: building all of them takes a while.
        print(f"{info.arch:{width}}  {scale:5}  {info.task:14}  {parameters:12,}  {weights:>8}  {package}", flush=True)
        for name, w in _tagged(info).items():
            size = os.path.getsize(w.packaged_path) if w.packaged_path else w.size or 4 * parameters
            megabytes = f"{size / 1e6:.{0 if size >= 1e7 else 1}f} MB"
            print(f"{name:{width}}  {'':5}  {'':14}  {'':12}  {megabytes:>8}  {w.license}", flush=True)
    return True


def _parameters(info: ModelInfo) -> int:
    import torch

    with torch.device("meta"):  # shapes without memory
        return sum(p.numel() for p in info.entry_point().parameters())


def _tagged(info: ModelInfo) -> dict[str, Weights]:
    return {f"{info.arch}.{tag}": weights for tag, weights in info.tags.items()}

"""`hatlib finetune`: a model that exists, trained on two folders of images, or one."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Declares the command."""
    parser = commands.add_parser(
        "finetune",
        help="train a model that exists on your own images",
        description="Fine-tune a model on a folder of high-resolution images. Images are kept out to validate on, "
        "unless --val names some. Stopped and started again with the same arguments, it goes on where it was.",
    )
    parser.add_argument("--hr", type=Path, required=True, metavar="DIR", help="high-resolution images")
    parser.add_argument(
        "--lr", type=Path, metavar="DIR", help="low-resolution ones (default: made by MATLAB's bicubic)"
    )
    parser.add_argument(
        "--model", default="hat_t_x4", metavar="MODEL", help="name, saved folder or weight file (default: %(default)s)"
    )
    parser.add_argument("--scale", type=int, metavar="S", help="another scale than the model's: its head is then new")
    parser.add_argument("--gray", action="store_true", help="train on gray images, and a model of one channel")
    parser.add_argument("--val", type=Path, nargs="+", default=[], metavar="DIR", help="benchmarks, or HR images")
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="of the run (default: runs/NAME_finetuned)")
    parser.add_argument("--updates", type=int, default=2000, metavar="N", help="of the optimizer (%(default)s)")
    parser.add_argument("--batch", type=int, metavar="N", help="patches per update and process (default: 4)")
    parser.add_argument("--patch", type=int, metavar="N", help="side of the LR patches (default: 64, or what fits)")
    parser.add_argument("--learning-rate", type=float, metavar="F", help="default: 1e-4, with a new head 2e-4")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), help="default: fp32")
    parser.add_argument("--low-memory", action="store_true", help="gradient checkpointing: a third slower")
    parser.add_argument("--device", choices=("auto", "cpu"), help="default: a GPU if there is one")
    parser.add_argument("--workers", type=int, metavar="N", help="processes that read ahead (default: 0)")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="key=value", help="anything else of a training's configuration"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Trains, prints the metrics before and after, draws a picture of both."""
    from hatlib.evaluation import as_table
    from hatlib.training import compare_with_start, finetune_config, train

    given = {
        "train.batch": args.batch,
        "train.lr": args.learning_rate,
        "train.precision": args.precision,
        "data.patch": args.patch,
        "data.workers": args.workers,
        "device": args.device,
        "model.grad_checkpointing": args.low_memory or None,
    }
    overrides = [f"{key}={value}" for key, value in given.items() if value is not None]
    config = finetune_config(
        args.model,
        args.hr,
        args.lr,
        val=args.val,
        out=args.output,
        scale=args.scale,
        gray=args.gray,
        updates=args.updates,
        overrides=overrides + args.set,
    )
    outcome = train(config, "auto")
    comparison = compare_with_start(config, outcome)
    print(f"\n{as_table(comparison.evaluation)}\n\n{comparison.sheet}")
    if comparison.gain > 0:
        print(f"{comparison.gain:+.3f} dB. The model is in '{outcome.model}'.")
    else:
        print(
            f"{comparison.gain:+.3f} dB: it is no better on these images than before. The model is in "
            f"'{outcome.model}'; more images, more --updates or another --learning-rate may help."
        )
    return 0

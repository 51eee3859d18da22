"""Fine-tuning a model that exists on a folder of images: what `hatlib finetune` decides by itself."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from hatlib.atomic import write_text
from hatlib.data import ImagePairs
from hatlib.detection import find_arch
from hatlib.errors import HatlibError
from hatlib.evaluation import Candidate, Evaluation, evaluate
from hatlib.evaluation.sheet import draw_sheet, sheet_rows
from hatlib.hub import PretrainedModel
from hatlib.hub.arguments import encode
from hatlib.hub.resolve import resolve
from hatlib.load import load
from hatlib.networks import model_info, split_name
from hatlib.registry import constructor_parameters, to_tuples
from hatlib.training.config import Config, load_config
from hatlib.training.data import validation_data
from hatlib.training.initialization import initial_model
from hatlib.training.loop import TrainResult

__all__ = ["FinetuneComparison", "compare_with_start", "finetune_config"]

LR_SAME, LR_NEW_HEAD = 1e-4, 2e-4
VALIDATION_SHARE, VALIDATION_MOST = 0.1, 20
PATCH = 64


@dataclass(frozen=True)
class FinetuneComparison:
    """How a fine-tuned model compares with what it was made from.

    Attributes:
        evaluation: bicubic, 'before' and 'after', on the validation images.
        gain: mean PSNR after, less that before, in dB.
        sheet: the picture of them.
    """

    evaluation: Evaluation
    gain: float
    sheet: Path


def finetune_config(
    model: str,
    hr: str | os.PathLike,
    lr: str | os.PathLike | None = None,
    *,
    val: Sequence[str | os.PathLike] = (),
    out: str | os.PathLike | None = None,
    scale: int | None = None,
    gray: bool = False,
    updates: int = 2000,
    overrides: Sequence[str] = (),
) -> Config:
    """A training that starts from a model, with a learning rate and a length for small data.

    Without `val`, a tenth of the images (20 at most, one at least) is kept out of the training and validated on; which
    ones is written to `train.txt` and `val.txt` in the folder of the run.

    Args:
        model: registered name with pretrained weights, saved folder or weight file.
        hr: folder of HR images.
        lr: folder of LR images; made by MATLAB's bicubic if None.
        val: benchmarks to validate on instead.
        out: folder of the run; runs/NAME_finetuned by default.
        scale: another scale than the model's: what of its upsampler does not fit is then new.
        gray: read the images as gray, and fit the model to one channel.
        updates: of the optimizer.
        overrides: 'section.key=value', which go before everything chosen here.

    Raises:
        HatlibError: If there is no such model, the images are too few or too small, or an override is not right.
    """
    cls, arguments, init = _identify(model)
    own_scale = arguments["upscale"]
    scale = scale or own_scale
    channels = {"in_chans": 1, "out_chans": None} if gray else {}
    arch, arguments = _arch_and_args(cls, {**arguments, **channels, "upscale": scale})
    name = f"{Path(resolve(model).label.rpartition(':')[2]).name}_finetuned"
    folder = Path(out or Path("runs") / name)

    images = ImagePairs(hr, lr, scale=scale, skip_unreadable=True)
    lists = {} if val else {folder / f"{part}.txt": names for part, names in _split(list(images.hr)).items()}
    training, validation = map(str, lists) if lists else (None, None)
    smallest = int((images.hr.sizes.min(1) // scale).min())
    content: dict[str, Any] = {
        "name": name,
        "out": str(folder),
        "note": f"Fine-tuned from {model} on images of {Path(hr).name}.",
        "model": {"name": arch, "args": arguments, "init": init},
        "data": {
            "hr": str(hr),
            "lr": None if lr is None else str(lr),
            "files": training,
            "gray": gray or arguments.get("in_chans") == 1,
            "patch": max(8, min(PATCH, smallest // 8 * 8)),
        },
        "train": {
            "updates": updates,
            "batch": 4,
            "lr": LR_SAME if scale == own_scale else LR_NEW_HEAD,
            "schedule": "cosine",
            "warmup": min(50, updates // 10),
            "clip": 1.0,
        },
        "val": {"every": 200, "folders": [str(v) for v in val], "files": validation},
        "save": {"every": 100},
        "log": {"every": 20},
    }
    config = load_config(content, overrides)
    _write_lists(lists)  # nothing is written for a configuration that is refused
    return config


def compare_with_start(config: Config, outcome: TrainResult) -> FinetuneComparison:
    """Measures the model that a fine-tuning made beside what it started from, and draws both.

    Raises:
        HatlibError: If an image can't be measured, or the picture can't be written.
    """
    before, _ = initial_model(config.model)
    after = PretrainedModel.from_pretrained(outcome.model)
    data = validation_data(config, after.upscale)
    rows = [Candidate("bicubic"), Candidate("before", before.eval()), Candidate("after", after)]
    device = "cpu" if config.device == "cpu" else None
    evaluation = evaluate(rows, data, device=device, tile=config.val.tile)
    if evaluation.failures:
        raise HatlibError(f"The comparison failed: {evaluation.failures[0].error}")
    sheet = outcome.folder / "comparison.png"
    draw_sheet(sheet, sheet_rows(rows, data, evaluation))
    mean = {m: [s.psnr for s in evaluation.summaries if s.model == m] for m in ("before", "after")}
    gain = (sum(mean["after"]) - sum(mean["before"])) / len(data)
    return FinetuneComparison(evaluation, gain, sheet)


def _identify(model: str) -> tuple[type[nn.Module], dict[str, Any], str]:
    """The class of a model, its constructor arguments with `upscale`, and what `model.init` takes for it."""
    source = resolve(model)
    if source.kind == "name":
        info = model_info(source.place)
        if info.weights is None:
            raise HatlibError(f"There are no pretrained weights for {source.place} to start from; name a weight file.")
        arch, tag = split_name(source.place)
        arguments = {**info.model_args, "upscale": info.scale}
        return info.model_class, arguments, source.place if tag else f"{arch}.{next(iter(info.tags))}"
    network = load(model)
    if not isinstance(network, PretrainedModel):
        raise HatlibError(f"{model!r} is a {type(network).__name__}, which hatlib runs but does not train.")
    return type(network), {"upscale": network.upscale, **network.config["model_args"]}, model


def _arch_and_args(cls: type[nn.Module], arguments: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The arch to build a network with, and the constructor arguments that differ from the arch's, as YAML has them."""
    arch, _ = find_arch(cls, arguments, getattr(cls, "training_only_args", ()))
    if not arch or model_info(arch).scale != arguments["upscale"]:
        raise HatlibError(f"There is no {cls.__name__} of scale x{arguments['upscale']} among hatlib.list_models().")
    own = {n: p.default for n, p in constructor_parameters(cls).items()} | dict(model_info(arch).model_args)
    return arch, {
        name: encode(value, name)
        for name, value in arguments.items()
        if name != "upscale" and (name not in own or to_tuples(value) != to_tuples(own[name]))
    }


def _split(names: Sequence[str]) -> dict[str, list[str]]:
    """Divides images into those to train on and those to validate on."""
    if len(names) < 2:
        raise HatlibError(f"{len(names)} image is too few to train and to validate on; add some, or give --val.")
    count = min(VALIDATION_MOST, max(1, round(VALIDATION_SHARE * len(names))))
    chosen = set(random.Random(0).sample(sorted(names), count))
    return {"train": [n for n in names if n not in chosen], "val": [n for n in names if n in chosen]}


def _write_lists(lists: Mapping[Path, Sequence[str]]) -> None:
    for path, names in lists.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise HatlibError(f"Cannot write to '{path.parent}': {error.strerror or error}.") from error
        write_text(path, "".join(f"{name}\n" for name in names))

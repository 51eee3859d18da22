"""The end of a training: a directory of the averaged weights that can be loaded and shared."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from hatlib.data import ImagePairs
from hatlib.evaluation import Candidate
from hatlib.hub.card import ModelFacts
from hatlib.training.config import Config
from hatlib.training.validate import Metrics, metrics_of, validate

__all__ = ["save_final_model"]


def save_final_model(
    config: Config, model: nn.Module, val: Mapping[str, ImagePairs], accelerator: Accelerator, facts: Mapping[str, Any]
) -> tuple[Path, Metrics]:
    """Writes FOLDER/model with `save_pretrained`, and measures what was written.

    Args:
        config: of the run.
        model: with the averaged weights.
        val: the benchmarks.
        accelerator: of the run; its main process writes.
        facts: what is known beyond the configuration, for the card.

    Returns:
        The directory, and the metrics of the weights as they are in it.
    """
    target = config.folder / "model"
    saved = deepcopy(model)
    if config.save.half:  # what is measured is what is written; buffers that are not saved keep their precision
        weights = saved.state_dict()
        saved.load_state_dict({k: v.half().float() if v.is_floating_point() else v for k, v in weights.items()})
    metrics: Metrics = {}
    if val:
        rows = [Candidate("model", saved)]
        metrics = metrics_of(validate(rows, val, accelerator, config.val.tile), "model")
    if accelerator.is_main_process:
        weights = {
            k: v.half() if config.save.half and v.is_floating_point() else v for k, v in saved.state_dict().items()
        }
        saved.save_pretrained(target, state_dict=weights, facts=_card(config, metrics, facts, target))
    accelerator.wait_for_everyone()
    return target, metrics


def _card(config: Config, metrics: Metrics, facts: Mapping[str, Any], target: Path) -> ModelFacts:
    train, data = config.train, config.data
    rate = {"multistep": f"x {train.gamma:g} at {train.milestones}", "cosine": "half a cosine", "constant": "constant"}
    start = f"; starts from {config.model.init}" if config.model.init else ""
    recipe = (
        f"{config.name}: {train.updates:,} updates of {facts['patches per update']} patches of "
        f"{data.patch}x{data.patch} LR pixels; Adam, learning rate {train.lr:g}, {rate[train.schedule]}"
        + (f", warm-up of {train.warmup}" if train.warmup else "")
        + f"; L1; averaged weights (EMA {train.ema:g}){start}"
    )
    folders = " ".join(shlex.quote(folder) for folder in config.val.folders)
    return ModelFacts(
        training_data=f"{facts['training images']} images of '{Path(data.hr or '').name}'"
        + ("" if data.lr else ", reduced by MATLAB's bicubic"),
        recipe=recipe,
        metrics={
            name: {"PSNR": round(values["psnr"], 3), "SSIM": round(values["ssim"], 4)}
            for name, values in metrics.items()
        },
        command=f"hatlib evaluate local-dir:{target} --data {folders}",
        note=config.note,
    )

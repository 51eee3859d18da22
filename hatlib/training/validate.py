"""Validation by the papers' protocol, divided among all processes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from accelerate import Accelerator
from torch import nn

from hatlib.data import ImagePairs, benchmark_folders
from hatlib.errors import HatlibError
from hatlib.evaluation import Contender, Evaluation, evaluate
from hatlib.training.config import Config

__all__ = ["mean_psnr", "metrics_of", "validate", "validation_data"]

Metrics = dict[str, dict[str, float]]


def validation_data(config: Config, scale: int) -> dict[str, ImagePairs]:
    """The benchmarks of a configuration by name: the folder's, or its parent's where that is 'HR'."""
    data = {}
    for folder in config.val.folders:
        hr, lr = benchmark_folders(folder, scale)
        path = Path(folder).resolve()
        name = path.parent.name if path.name.lower() in ("hr", "gt") else path.name
        if name in data:
            raise HatlibError(f"Two of val.folders are called {name!r}; their results would have one name.")
        data[name] = ImagePairs(hr, lr, scale=scale, in_memory=True)
    return data


def validate(
    models: Mapping[str, nn.Module | None], data: Mapping[str, ImagePairs], accelerator: Accelerator, tile: int | None
) -> Evaluation:
    """Measures models (None is bicubic), each process on its share of the images; all processes get all results.

    No image is seen twice to fill up a last round, so the means are those of one process, to the last digit.

    Raises:
        HatlibError: If an image can't be measured.
    """
    rows = [Contender(name, model) for name, model in models.items()]
    result = evaluate(rows, data, device=accelerator.device, tile=tile)
    if result.failures:
        raise HatlibError(f"The validation failed: {result.failures[0].error}")
    return result


def metrics_of(evaluation: Evaluation, model: str) -> Metrics:
    """{'Set5': {'psnr': 30.1, 'ssim': 0.86}} of one model."""
    return {s.data: {"psnr": s.psnr, "ssim": s.ssim} for s in evaluation.summaries if s.model == model}


def mean_psnr(metrics: Metrics) -> float:
    """What the best checkpoint is chosen by: the mean of the benchmarks' PSNR, in dB."""
    return sum(values["psnr"] for values in metrics.values()) / len(metrics)

"""Validation by the papers' protocol, divided among all processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from accelerate import Accelerator

from hatlib.data import ImagePairs
from hatlib.errors import HatlibError
from hatlib.evaluation import Candidate, Evaluation, evaluate

__all__ = ["mean_psnr", "metrics_of", "validate"]

Metrics = dict[str, dict[str, float]]


def validate(
    rows: Sequence[Candidate], data: Mapping[str, ImagePairs], accelerator: Accelerator, tile: int | None
) -> Evaluation:
    """Measures models, each process on its share of the images; all processes get all results.

    No image is seen twice to fill up a last round, so the means are those of one process, to the last digit.

    Raises:
        HatlibError: If an image can't be measured.
    """
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

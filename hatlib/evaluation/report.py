"""The outcome as a table that is Markdown too, and as JSON."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from hatlib.evaluation.protocol import Evaluation
from hatlib.version import __version__

__all__ = ["as_json", "as_table", "per_image_table"]

PROTOCOL = (
    "8-bit results, borders of `scale` pixels left out, BT.601 luma not rounded, a value per image, then the mean; LR "
    "by MATLAB's bicubic imresize"
)


def as_table(evaluation: Evaluation) -> str:
    """Means per data set and model; published values in their own columns if there are any."""
    published = [s for s in evaluation.summaries if s.published_psnr is not None or s.published_ssim is not None]
    header = ["data", "model", "images", "PSNR (dB)", "SSIM", "s/image"]
    lines = []
    for s in evaluation.summaries:
        line = [f"{s.data} x{evaluation.scale}", s.model, str(s.images), _psnr(s.psnr), _ssim(s.ssim), _time(s.seconds)]
        lines.append(line + ([_psnr(s.published_psnr, 2), _ssim(s.published_ssim)] if published else []))
    return markdown(header + (["published PSNR", "published SSIM"] if published else []), lines)


def per_image_table(evaluation: Evaluation) -> str:
    """A line per image, PSNR / SSIM of each model beside each other."""
    models = list(dict.fromkeys(r.model for r in evaluation.results))
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for r in evaluation.results:
        text = "failed" if r.error else f"{_psnr(r.psnr)} / {_ssim(r.ssim)}"
        cells.setdefault((r.data, r.image), {})[r.model] = text
    lines = [[*key, *(values[model] for model in models)] for key, values in cells.items()]
    return markdown(["data", "image", *models], lines)


def as_json(evaluation: Evaluation) -> str:
    """Everything, with full digits; an infinite PSNR (equal images) is the string "inf", what is missing is null."""
    content = {
        "hatlib": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "protocol": PROTOCOL,
        "scale": evaluation.scale,
        "device": evaluation.device,
        "tile": evaluation.tile,
        "self_ensemble": evaluation.self_ensemble,
        "summary": [asdict(s) for s in evaluation.summaries],
        "images": [asdict(r) for r in evaluation.results],
    }
    return json.dumps(_plain(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table, aligned so that it reads well as it is."""
    lines = [[cell.replace("|", r"\|") for cell in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]
    rule = "|" + "|".join("-" * (w + 2) for w in widths) + "|"
    rows = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in (header, *lines)
    ]
    return "\n".join([rows[0], rule, *rows[1:]])


def _psnr(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _ssim(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _time(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value

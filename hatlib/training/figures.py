"""Figures of a training: learning curves, and images that the model restored."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hatlib.data import ImagePairs
from hatlib.evaluation import Candidate, Evaluation, draw_sheet, sheet_rows
from hatlib.imageio.figure import write_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["curves_figure", "draw_curves", "draw_samples", "read_log"]

LOSS, PSNR = "L1 loss", "PSNR on Y (dB)"


def read_log(path: Path) -> list[dict[str, Any]]:
    """Reads the rows of a log up to the first incomplete line."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def draw_curves(log: Path, path: Path) -> None:
    """Draws the training loss, and the PSNR of each benchmark with that of bicubic interpolation.

    Args:
        log: `log.jsonl` of a run.
        path: image file to write; an existing file is replaced.

    Raises:
        HatlibError: if the file cannot be written.
    """
    write_figure(path, curves_figure(read_log(log)))


def curves_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Plots the loss and the PSNR over the optimizer updates, each in `Axes` of its own if there are finite values.

    A thin horizontal line marks the PSNR of bicubic interpolation. The highest hundredth of the losses may exceed the
    axis, because the first losses can be many times larger than all others.

    Args:
        rows: rows of a log, see `read_log`.
    """
    from matplotlib.figure import Figure

    plots: dict[str, dict[str, list[tuple[int, float]]]] = {LOSS: {}, PSNR: {}}
    bicubic: dict[str, float] = {}
    for row in rows:
        values = [(LOSS, "loss", row["loss"])] if "loss" in row else []
        values += [(PSNR, data, metrics["psnr"]) for data, metrics in row.get("val", {}).items()]
        for label, name, value in values:
            if math.isfinite(value):
                plots[label].setdefault(name, []).append((row["update"], value))
        bicubic.update({data: metrics["psnr"] for data, metrics in row.get("bicubic", {}).items()})
    plots = {label: curves for label, curves in plots.items() if curves}
    figure = Figure(figsize=(4.8 * max(len(plots), 1), 3.2), dpi=120, layout="constrained")
    for i, (label, curves) in enumerate(plots.items(), 1):
        axes = figure.add_subplot(1, len(plots), i, xlabel="optimizer updates", ylabel=label)
        lines, texts = [], []
        for name, points in curves.items():
            lines += axes.plot(*zip(*points, strict=True), linewidth=1.2, marker="." if len(points) < 30 else "")
            texts.append(f"{name} {points[-1][1]:.4g}")
            if math.isfinite(bicubic.get(name, math.nan)):
                axes.axhline(bicubic[name], color=lines[-1].get_color(), linewidth=0.8)
                texts[-1] += f" (bicubic {bicubic[name]:.4g})"
        axes.margins(0.02, 0.05)
        values = sorted(value for points in curves.values() for _, value in points)
        if label == LOSS and values[0] < (high := values[int(0.99 * len(values))]) < values[-1]:
            room = 0.05 * (high - values[0])
            axes.set_ylim(values[0] - room, high + room)
        axes.grid(color="0.92")
        axes.spines[["top", "right"]].set_visible(False)
        place = dict(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, columnspacing=1, handlelength=1)
        for text in axes.legend(lines, texts, fontsize="small", frameon=False, borderpad=0, **place).get_texts():
            text.set_parse_math(False)
    return figure


def draw_samples(
    rows: Sequence[Candidate], data: Mapping[str, ImagePairs], evaluation: Evaluation, count: int, path: Path
) -> None:
    """Draws the images of each benchmark that bicubic interpolation restores worst, as each model restores them.

    Args:
        rows: bicubic and the models.
        data: benchmarks.
        evaluation: results of the models on the benchmarks.
        count: number of images of each benchmark.
        path: image file to write; an existing file is replaced.

    Raises:
        HatlibError: if the file cannot be written, or no image was evaluated by all models.
    """
    draw_sheet(path, sheet_rows(rows, data, evaluation, worst=count))

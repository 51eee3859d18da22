"""Pictures of a training: its curves, and what the model makes of some images."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hatlib.data import ImagePairs
from hatlib.evaluation import Candidate, Evaluation, draw_sheet, sheet_rows
from hatlib.imageio import Image, write_image

if TYPE_CHECKING:
    from PIL import ImageDraw

__all__ = ["draw_curves", "draw_samples", "read_log"]

WIDTH, HEIGHT, TEXT = 560, 380, 13
LEFT, RIGHT, TOP, BOTTOM = 64, 20, 34, 40
INK, GRID = (30, 30, 30), (225, 225, 225)
COLORS = ((31, 119, 180), (214, 39, 40), (44, 160, 44), (148, 103, 189), (255, 127, 14), (140, 86, 75))

Curve = list[tuple[float, float]]


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log; one that is cut off in the middle ends it."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def draw_curves(log: Path, path: Path) -> None:
    """Draws the loss, and the PSNR of each benchmark with bicubic's as a flat line, over the updates.

    Args:
        log: `log.jsonl` of a run.
        path: the picture to write.

    Raises:
        HatlibError: If it can't be written.
    """
    from PIL import Image as PILImage
    from PIL import ImageDraw

    rows = read_log(log)
    loss = {"loss": [(row["update"], row["loss"]) for row in rows if "loss" in row]}
    psnr: dict[str, Curve] = {}
    flat: dict[str, float] = {}
    for row in rows:
        for data, metrics in row.get("val", {}).items():
            psnr.setdefault(data, []).append((row["update"], metrics["psnr"]))
        flat.update({data: metrics["psnr"] for data, metrics in row.get("bicubic", {}).items()})
    panels = [("L1 loss", loss, {}), ("PSNR on Y, dB (line: bicubic)", psnr, flat)]
    panels = [panel for panel in panels if any(panel[1].values())]
    sheet = PILImage.new("RGB", (WIDTH * max(1, len(panels)), HEIGHT), "white")
    for i, panel in enumerate(panels):
        _draw_panel(ImageDraw.Draw(sheet), WIDTH * i, *panel)
    write_image(path, Image(np.array(sheet)))


def draw_samples(
    rows: Sequence[Candidate], data: Mapping[str, ImagePairs], evaluation: Evaluation, count: int, path: Path
) -> None:
    """Draws, of each benchmark, the images that are worst for bicubic, beside what each model makes of them.

    Args:
        rows: bicubic and the models.
        data: the benchmarks.
        evaluation: of these.
        count: images of each benchmark.
        path: the picture to write.

    Raises:
        HatlibError: If it can't be written.
    """
    draw_sheet(path, sheet_rows(rows, data, evaluation, worst=count))


def _draw_panel(
    draw: ImageDraw.ImageDraw, x0: int, title: str, curves: Mapping[str, Curve], flat: Mapping[str, float]
) -> None:
    from PIL import ImageFont

    font = ImageFont.load_default(TEXT)
    points = [point for curve in curves.values() for point in curve if math.isfinite(point[1])]
    low, high = _range([y for _, y in points] + list(flat.values()))
    end = max([x for x, _ in points] + [1])
    box = (x0 + LEFT, TOP, x0 + WIDTH - RIGHT, HEIGHT - BOTTOM)

    def place(x: float, y: float) -> tuple[float, float]:
        return box[0] + x / end * (box[2] - box[0]), box[3] - (y - low) / (high - low) * (box[3] - box[1])

    draw.text((box[0], 8), title, INK, font)
    for tick in _ticks(low, high):
        y = place(0, tick)[1]
        draw.line((box[0], y, box[2], y), GRID)
        draw.text((box[0] - 6, y), f"{tick:g}", INK, font, anchor="rm")
    for tick in _ticks(0, end):
        x = place(tick, low)[0]
        draw.line((x, box[3], x, box[3] + 4), INK)
        draw.text((x, box[3] + 8), f"{tick:g}", INK, font, anchor="mt")
    draw.rectangle(box, outline=INK)
    right = box[2]
    for i, (name, curve) in enumerate(curves.items()):
        color = COLORS[i % len(COLORS)]
        draw.line([place(x, y) for x, y in curve if math.isfinite(y)], color, 2)
        if name in flat:
            draw.line((*place(0, flat[name]), *place(end, flat[name])), color, 1)
        label = f"{name} {curve[-1][1]:.4g}" if curve else name
        draw.text((right, 8), label, color, font, anchor="ra")
        right -= font.getlength(label) + 14


def _range(values: Sequence[float]) -> tuple[float, float]:
    """From the least to the largest value, with a little room; the first, wild ones don't make the rest flat."""
    ordered = sorted(values)
    if not ordered:
        return 0.0, 1.0
    low, high = ordered[0], ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    room = 0.05 * (high - low) or abs(high) * 0.05 or 1.0
    return low - room, high + room


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers between two values."""
    step = 10 ** math.floor(math.log10((high - low) / 4))
    step *= next((m for m in (1, 2, 5) if (high - low) / (m * step) <= 6), 10)
    return [round(i * step, 10) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]

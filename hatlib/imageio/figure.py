"""Figures of captioned image panels. matplotlib draws them without a display and without global state."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hatlib.imageio.image import Image
from hatlib.imageio.write import write_image

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.text import Text
    from torch import Tensor

__all__ = ["Panel", "panel_figure", "panel_size", "panel_zoom", "write_figure"]

DPI = 128  # a power of two, so that sizes in inches are exact
GAP, LINE = 12, 18  # pixels between panels, and of a line of text
INSET = 1e-6  # pixels; matplotlib rounds sizes up, so a rounding error could add a pixel
FRAME = "#2a5cff"


@dataclass(frozen=True)
class Panel:
    """An image of a figure, with the coordinates (0, 0) at its top left and `scale` units per pixel.

    Args:
        image: pixels in RGB or gray.
        caption: lines of text under the image.
        size: width and height of the panel in pixels of the figure.
        scale: units per pixel of the image.
        view: visible part of the image as left, top, width and height; the whole image by default.
        frame: square to outline as left, top and side.

    Shape:
        image: (3 or 1, H, W), uint8
    """

    image: Tensor
    caption: str
    size: tuple[int, int]
    scale: int = 1
    view: tuple[float, float, float, float] | None = None
    frame: tuple[int, int, int] | None = None


def panel_zoom(length: int) -> float:
    """Magnification at which a side of `length` pixels fills a panel of 224 to 448 pixels.

    The magnification is a whole number, so that all pixels are drawn equally large. Only longer sides are reduced.
    """
    return -(-224 // length) if length <= 448 else 448 / length


def panel_size(image: Tensor, zoom: float) -> tuple[int, int]:
    """Width and height of a panel for a whole image (C, H, W)."""
    height, width = image.shape[1:]
    return max(round(width * zoom), 1), max(round(height * zoom), 1)


def panel_figure(rows: Sequence[Sequence[Panel]]) -> Figure:
    """Arranges panels in rows and aligned columns; each panel becomes one `Axes` with the caption as its x label.

    Panels have the exact size in pixels that they ask for. Enlarged images keep hard pixel edges; images that are
    reduced, or slightly enlarged by a fraction, are resampled smoothly.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    columns = [max(row[i].size[0] for row in rows if i < len(row)) for i in range(max(map(len, rows)))]
    lines = [1 + max(panel.caption.count("\n") for panel in row) for row in rows]
    heights = [max(panel.size[1] for panel in row) + LINE * n for row, n in zip(rows, lines, strict=True)]
    width, height = (sum(lengths) + GAP * (len(lengths) + 1) for lengths in (columns, heights))
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)  # measures the captions
    for i, row in enumerate(rows):
        top = sum(heights[:i]) + GAP * (i + 1)
        for j, panel in enumerate(row):
            left = sum(columns[:j]) + GAP * (j + 1)
            (w, h), (image_height, image_width) = panel.size, panel.image.shape[1:]
            box = (left + INSET, height - top - h + INSET, w - 2 * INSET, h - 2 * INSET)
            axes = figure.add_axes(np.divide(box, (width, height) * 2), xticks=[], yticks=[])
            axes.spines[:].set(color="0.8", linewidth=0.5)
            right, bottom = image_width * panel.scale, image_height * panel.scale
            x, y, view_width, view_height = panel.view or (0, 0, right, bottom)
            zoom = w / view_width * panel.scale
            axes.imshow(
                panel.image.expand(3, -1, -1).permute(1, 2, 0).numpy(),
                extent=(0, right, bottom, 0),
                aspect="auto",
                interpolation="nearest" if zoom >= 3 or zoom == round(zoom) else "hanning",
            )
            axes.set(xlim=(x, x + view_width), ylim=(y + view_height, y))
            if panel.frame is not None:
                *corner, side = panel.frame
                axes.add_patch(Rectangle(corner, side, side, fill=False, edgecolor=FRAME))
            label = axes.set_xlabel("", loc="left", fontsize=8, labelpad=2, parse_math=False)
            label.set_text("\n".join(_shortened(line, label, columns[j]) for line in panel.caption.split("\n")))
    return figure


def write_figure(path: str | os.PathLike, figure: Figure) -> None:
    """Renders a figure and writes the image atomically.

    Args:
        path: image file to write; an existing file is replaced.
        figure: matplotlib figure.

    Raises:
        HatlibError: if the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    write_image(path, Image(np.asarray(canvas.buffer_rgba())[..., :3]))


def _shortened(line: str, text: Text, width: int) -> str:
    """The line with an ellipsis in its middle if `text` would draw it wider than `width` pixels."""
    shown, keep = line, len(line)
    text.set_text(shown)
    while text.get_window_extent().width > width and keep > 2:
        keep -= 1
        shown = f"{line[: (keep + 1) // 2]}…{line[len(line) - keep // 2 :]}"
        text.set_text(shown)
    return shown

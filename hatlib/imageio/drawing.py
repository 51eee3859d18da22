"""Sheets of captioned pictures, on which results are compared by eye."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image as PILImage
    from torch import Tensor

__all__ = ["Panel", "draw_row", "framed", "stacked", "to_pil"]

GAP = 12
TEXT = 15
LINE = TEXT + 5
INK, FRAME = (30, 30, 30), (230, 40, 40)


@dataclass(frozen=True)
class Panel:
    """A picture of a sheet.

    Args:
        image: the picture.
        captions: lines under it.
        width: of its column, in pixels; that of the picture if 0.
    """

    image: PILImage.Image
    captions: Sequence[str]
    width: int = 0


def draw_row(panels: Sequence[Panel], lines: int = 2) -> PILImage.Image:
    """Panels beside each other on white, each with its captions, for which there is room for `lines` lines."""
    from PIL import Image as PILImage
    from PIL import ImageDraw, ImageFont

    font = ImageFont.load_default(TEXT)
    widths = [panel.width or panel.image.width for panel in panels]
    height = max(panel.image.height for panel in panels)
    canvas = PILImage.new("RGB", (GAP + sum(w + GAP for w in widths), GAP + height + lines * LINE + GAP), "white")
    draw, x = ImageDraw.Draw(canvas), GAP
    for panel, width in zip(panels, widths, strict=True):
        canvas.paste(panel.image, (x, GAP))
        for i, caption in enumerate(panel.captions):
            draw.text((x, GAP + panel.image.height + 3 + i * LINE), _fitted(caption, font, width), INK, font)
        x += width + GAP
    return canvas


def stacked(rows: Sequence[PILImage.Image]) -> np.ndarray:
    """Rows below each other on white, (H, W, 3), uint8."""
    from PIL import Image as PILImage

    sheet = PILImage.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    return np.array(sheet)


def framed(
    image: PILImage.Image, box: Sequence[float], color: tuple[int, int, int] = FRAME, width: int = 2
) -> PILImage.Image:
    """The picture with a frame around the box (left, top, right, bottom); drawn into the picture itself."""
    from PIL import ImageDraw

    ImageDraw.Draw(image).rectangle([round(value) for value in box], outline=color, width=width)
    return image


def to_pil(image: Tensor) -> PILImage.Image:
    """(3, H, W), or gray (1, H, W), uint8, as a PIL image in RGB."""
    from PIL import Image as PILImage

    return PILImage.fromarray(np.ascontiguousarray(image.expand(3, -1, -1).permute(1, 2, 0).byte().numpy()))


def _fitted(text: str, font: object, width: int) -> str:
    """The text, shortened in the middle until it is no wider than `width` pixels."""
    shown, keep = text, len(text)
    while font.getlength(shown) > width and keep > 2:
        keep -= 1
        shown = f"{text[: (keep + 1) // 2]}…{text[len(text) - keep // 2 :]}"
    return shown

"""Images in overlapping tiles, blended so that no seam shows. Pure functions, one axis at a time.

Tiles start at multiples of the model's window, so that its windows lie where they would lie in the whole image; only
the last tile of an axis may be smaller. The blending weights of an axis sum to one at every pixel and are never zero,
and the weight of a pixel is the product of its two axes, so tiles are simply added up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from hatlib.errors import HatlibError


class Span(NamedTuple):
    """Where a tile lies on an axis, in input pixels."""

    start: int
    stop: int


def tile_spans(length: int, tile: int | None, overlap: int = 0, multiple: int = 1) -> list[Span]:
    """Cuts an axis into as few tiles as the size allows, evenly spread.

    Args:
        length: pixels of the axis.
        tile: largest tile, rounded down to a multiple; None is one tile for all.
        overlap: least number of pixels that neighbours share, rounded up to a multiple.
        multiple: tiles start at multiples of this, usually the model's window.

    Returns:
        The tiles in order; the first starts at 0, the last stops at `length`, neighbours share at least `overlap`.

    Raises:
        HatlibError: if the tile is not larger than the overlap.
    """
    if tile is None or length <= tile:
        return [Span(0, length)]
    tile = tile // multiple * multiple
    overlap = -(-overlap // multiple) * multiple
    if tile <= overlap:
        least = overlap + multiple
        raise HatlibError(
            f"Tiles must be at least {least} pixels for an overlap of {overlap} and a window of {multiple}."
        )
    if length <= tile:
        return [Span(0, length)]
    count = 1 - (tile - length) // (tile - overlap)  # 1 + ceil((length - tile) / (tile - overlap))
    step = -((tile - length) // ((count - 1) * multiple)) * multiple  # even steps, rounded up to a multiple
    return [Span(i * step, min(i * step + tile, length)) for i in range(count)]


def blend_weights(spans: list[Span], scale: int = 1) -> list[torch.Tensor]:
    """Weights of each tile along an axis of the output: 1 inside, linear ramps across the overlaps.

    Args:
        spans: the tiles of the axis.
        scale: output pixels per input pixel.

    Returns:
        For each tile a float64 vector of (stop - start) * scale weights, all above zero; they sum to 1 at every pixel.
    """
    length = spans[-1].stop * scale
    total = torch.zeros(length, dtype=torch.float64)
    weights = []
    for index, (start, stop) in enumerate(spans):
        position = torch.arange((stop - start) * scale, dtype=torch.float64) + 0.5
        weight = torch.ones_like(position)
        if index > 0 and (shared := (spans[index - 1].stop - start) * scale) > 0:
            weight = torch.minimum(weight, position / shared)
        if index + 1 < len(spans) and (shared := (stop - spans[index + 1].start) * scale) > 0:
            weight = torch.minimum(weight, position.flip(0) / shared)
        weights.append(weight)
        total[start * scale : stop * scale] += weight
    return [w / total[start * scale : stop * scale] for w, (start, stop) in zip(weights, spans, strict=True)]


def tiled(
    function: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    *,
    scale: int,
    tile: int | None = None,
    overlap: int = 0,
    multiple: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> torch.Tensor:
    """Applies a function that enlarges images by `scale` tile by tile; the function itself if one tile is enough.

    An error in a tile is raised, never skipped.

    Args:
        function: maps (B, C, h, w) to (B, C', scale * h, scale * w), any h and w.
        x: the image; the result has its device and type.
        scale: enlargement of the function.
        tile: largest tile in input pixels, None for the whole image.
        overlap: least number of input pixels that neighbouring tiles share.
        multiple: tiles start at multiples of this.
        progress: called as progress(done, total) after each tile.

    Shape:
        x: (B, C, H, W); result: (B, C', scale * H, scale * W).

    Raises:
        HatlibError: if the tile is not larger than the overlap, or the function gives another size.
    """
    rows = tile_spans(x.shape[2], tile, overlap, multiple)
    columns = tile_spans(x.shape[3], tile, overlap, multiple)
    total = len(rows) * len(columns)
    row_weights = blend_weights(rows, scale)
    column_weights = blend_weights(columns, scale)
    result = None
    for index in range(total):
        i, j = divmod(index, len(columns))
        (top, bottom), (left, right) = rows[i], columns[j]
        part = function(x[:, :, top:bottom, left:right])
        if part.shape[2:] != ((bottom - top) * scale, (right - left) * scale):
            raise HatlibError(
                f"The model made {tuple(part.shape[2:])} of {(bottom - top, right - left)} pixels instead of x{scale}."
            )
        if total == 1:
            result = part.to(x)
        else:
            part = part.to(x)
            if result is None:
                result = x.new_zeros(x.shape[0], part.shape[1], x.shape[2] * scale, x.shape[3] * scale)
            weight = (row_weights[i][:, None] * column_weights[j]).to(part)
            result[:, :, top * scale : bottom * scale, left * scale : right * scale] += part * weight
        if progress is not None:
            progress(index + 1, total)
    return result

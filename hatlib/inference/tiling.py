"""Images in overlapping tiles, blended so that no seam shows. Pure functions, one axis at a time.

Tiles start at multiples of the model's window, so that its windows lie where they would lie in the whole image; only
the last tile of an axis may be smaller. The blending weights of an axis sum to one at every pixel and are never zero,
and the weight of a pixel is the product of its two axes, so tiles are simply added up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

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
        overlap: least number of pixels that neighbors share, rounded up to a multiple.
        multiple: tiles start at multiples of this, usually the model's window.

    Returns:
        The tiles in order; the first starts at 0, the last stops at `length`, neighbors share at least `overlap`.

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


def tiled_strips(
    function: Callable[[torch.Tensor], torch.Tensor],
    read: Callable[[int, int], torch.Tensor],
    size: tuple[int, int],
    *,
    scale: int,
    tile: int | None = None,
    overlap: int = 0,
    multiple: int = 1,
    batch: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[torch.Tensor]:
    """Applies a function tile by tile and gives the result in strips from top to bottom, as soon as each is finished.

    Only one row of tiles is in memory. An error in a tile is raised, never skipped.

    Args:
        function: maps (B, C, h, w) to (B, C', scale * h, scale * w), any h and w.
        read: read(start, stop) gives these rows of the image, (B, C, stop - start, W); it is asked from top to bottom,
            and for rows that neighboring tiles share twice.
        size: height and width of the image.
        scale: enlargement of the function.
        tile: largest tile in input pixels, None for the whole image.
        overlap: least number of input pixels that neighboring tiles share.
        multiple: tiles start at multiples of this.
        batch: tiles of a row that are handed to the function at once, if of equal size.
        progress: called as progress(done, total) after each tile.

    Yields:
        Strips (B, C', h, scale * W), together scale * H rows, of the device and type of what `read` gives.

    Raises:
        HatlibError: if the tile is not larger than the overlap, or the function gives another size.
    """
    rows = tile_spans(size[0], tile, overlap, multiple)
    columns = tile_spans(size[1], tile, overlap, multiple)
    row_weights = blend_weights(rows, scale)
    column_weights = blend_weights(columns, scale)
    groups = _equal_neighbors(columns, batch)
    done, total = 0, len(rows) * len(columns)
    carried = None  # rows of the result that the next row of tiles adds to
    for i, (top, bottom) in enumerate(rows):
        x = read(top, bottom)
        strip = None
        for group in groups:
            parts = [x[:, :, :, columns[j].start : columns[j].stop] for j in group]
            expected = [side * scale for side in parts[0].shape[2:]]
            y = function(torch.cat(parts) if len(parts) > 1 else parts[0]).to(x)
            if list(y.shape[2:]) != expected:
                raise HatlibError(
                    f"The model made {tuple(y.shape[2:])} of {tuple(parts[0].shape[2:])} instead of x{scale}."
                )
            if total == 1:
                strip = y
            else:
                if strip is None:
                    strip = y.new_zeros(x.shape[0], y.shape[1], expected[0], size[1] * scale)
                for j, part in zip(group, y.chunk(len(group)), strict=True):
                    weight = (row_weights[i][:, None] * column_weights[j]).to(part)
                    strip[:, :, :, columns[j].start * scale : columns[j].stop * scale] += part * weight
            done += len(group)
            if progress is not None:
                progress(done, total)
        if carried is not None:
            strip[:, :, : carried.shape[2]] += carried
        finished = ((rows[i + 1].start if i + 1 < len(rows) else bottom) - top) * scale
        carried = strip[:, :, finished:].clone()
        yield strip[:, :, :finished]


def tiled(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, **options: Any) -> torch.Tensor:
    """`tiled_strips` for an image in memory: applies a function tile by tile, or to all if one tile is enough.

    Args:
        function: maps (B, C, h, w) to (B, C', scale * h, scale * w), any h and w.
        x: the image; the result has its device and type.
        **options: scale, tile, overlap, multiple, batch, progress, as for `tiled_strips`.

    Shape:
        x: (B, C, H, W); result: (B, C', scale * H, scale * W).

    Raises:
        HatlibError: as `tiled_strips`.
    """
    result, filled = None, 0
    size = (x.shape[2], x.shape[3])
    for strip in tiled_strips(function, lambda start, stop: x[:, :, start:stop], size, **options):
        height = size[0] * options["scale"]
        if strip.shape[2] == height:
            return strip
        if result is None:
            result = strip.new_empty(*strip.shape[:2], height, strip.shape[3])
        result[:, :, filled : filled + strip.shape[2]] = strip
        filled += strip.shape[2]
    return result


def _equal_neighbors(spans: list[Span], batch: int) -> list[list[int]]:
    """Indices of the tiles of an axis, in groups of up to `batch` of equal length."""
    groups: list[list[int]] = []
    for index, span in enumerate(spans):
        last = spans[groups[-1][0]] if groups else None
        if last and len(groups[-1]) < batch and last.stop - last.start == span.stop - span.start:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups

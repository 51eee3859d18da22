"""Figures of the analysis: local attribution maps of several networks below each other, and their feature maps."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hatlib.analysis.blocking import blocking_ratio
from hatlib.analysis.diffusion import density
from hatlib.analysis.lam import Attribution, Window
from hatlib.data import imresize
from hatlib.errors import HatlibError
from hatlib.imageio import Image, write_image
from hatlib.imageio.drawing import Panel, draw_row, framed, stacked, to_pil
from hatlib.metrics import rgb_to_y

if TYPE_CHECKING:
    from PIL import Image as PILImage

__all__ = ["draw_features", "draw_lam"]

SIDE = 224  # of a panel
CONTEXT = 3  # how many windows the enlarged part around a window is wide
BLUE, LIGHT = (30, 80, 240), (200, 200, 200)  # the window, so that it is not taken for a part of the map; the edge


def draw_lam(
    path: str | os.PathLike, results: Mapping[str, Attribution], original: Tensor | None = None, alpha: float = 0.5
) -> None:
    """Draws the paper's figure: the image with the window, and a row for each network.

    A row shows the result, the part of it around the window, the attribution map from white to red, and the map and
    its density over the image; the diffusion index stands under it.

    Args:
        path: image file to write; an existing one is replaced.
        results: what `lam` found for one image and window, by the name of the network.
        original: the image at output size, if there is one; the input is enlarged otherwise.
        alpha: share of the image where a map lies over it, 0 to 1.

    Shape:
        original: (3 or 1, s * h, s * w), uint8 or floating point in [0, 1]

    Raises:
        HatlibError: if there is nothing to draw, the results are of different windows or sizes, or the file can't be
            written.
    """
    if not results:
        raise HatlibError("There is nothing to draw: no results were given.")
    if not 0 <= alpha <= 1:
        raise HatlibError(f"alpha={alpha} must lie in [0, 1].")
    first = next(iter(results.values()))
    if len({(r.window, r.scale, r.map.shape) for r in results.values()}) > 1:
        raise HatlibError("Only attributions of one image, window and scale can be compared.")
    enlarged = _rgb(original) if original is not None else imresize(_rgb(first.image), first.scale)
    if enlarged.shape[1:] != first.sr.shape[1:]:
        raise HatlibError(f"The original is {tuple(enlarged.shape[1:])}, and the result {tuple(first.sr.shape[1:])}.")
    what = "original" if original is not None else "input, enlarged"
    height, width = first.map.shape
    x, y, side = first.window
    rows = [
        [
            Panel(_windowed(enlarged, first.window), [what, f"window {side}x{side} at {x}, {y}"]),
            Panel(_around(enlarged, first.window), ["its window"]),
            Panel(_windowed(_rgb(first.image), first.window, first.scale), [f"input, {width}x{height}"]),
        ]
    ]
    backdrop = (rgb_to_y(enlarged / 255) / 255)[0]  # without colors, among which red would be lost
    for name, result in results.items():
        smooth = density(result.map)
        over = [_over(heat, backdrop, alpha) for heat in (result.map, smooth / smooth.max())]
        sr, window = _rgb(result.sr), result.window
        rows.append(
            [
                Panel(_windowed(sr, window), [name, f"diffusion index {result.di:.2f}"]),
                Panel(_around(sr, window), ["its window"]),
                Panel(_windowed(white_to_red(result.map), window, result.scale), ["attribution"]),
                Panel(_windowed(over[0], window), ["over the image"]),
                Panel(_windowed(over[1], window), ["its density"]),
            ]
        )
    write_image(Path(path), Image(stacked([draw_row(row) for row in rows])))


def draw_features(path: str | os.PathLike, features: Mapping[str, tuple[Sequence[Tensor], int]]) -> None:
    """Draws feature maps after each group: a row for each network, with the blocking ratio under each map.

    A map is drawn as the mean over its channels, of which the darkest and the brightest hundredth are black and white.

    Args:
        path: image file to write; an existing one is replaced.
        features: by the name of the network its maps, as `feature_maps` gives them, and the side of its windows.

    Raises:
        HatlibError: if there is nothing to draw, a map has fewer than two windows a side, or the file can't be written.
    """
    if not features or not all(len(maps) for maps, _ in features.values()):
        raise HatlibError("There is nothing to draw: no feature maps were given.")
    rows = []
    for name, (maps, window) in features.items():
        panels = []
        for i, feature in enumerate(maps):
            blocking = blocking_ratio(feature, window)
            figures = f"ratio {blocking.ratio:.2f} / {blocking.half:.2f} / {blocking.control:.2f}"
            panels.append(Panel(_scaled(_gray(feature)), [f"{name}, group {i + 1}", figures]))
        rows.append(draw_row(panels))
    write_image(Path(path), Image(stacked(rows)))


def white_to_red(heat: Tensor) -> Tensor:
    """A map in [0, 1] as colors: 0 is white, 1 is red.

    Shape: (h, w) -> (3, h, w), uint8
    """
    rest = (255 * (1 - heat.clamp(0, 1))).round().byte()
    return torch.stack((torch.full_like(rest, 255), rest, rest))


def _rgb(image: Tensor) -> Tensor:
    """An image of any number of channels as (3, H, W), uint8."""
    if image.dtype != torch.uint8:
        image = image.float().clamp(0, 1).mul(255).round().byte()
    return image[:3] if image.shape[0] >= 3 else image[:1].expand(3, -1, -1)


def _gray(feature: Tensor) -> Tensor:
    """The mean over the channels of (C, H, W) as (3, H, W), uint8."""
    x = feature.float().mean(0)
    low, high = torch.quantile(x.flatten()[:: max(1, x.numel() // 10**6)], torch.tensor([0.01, 0.99]))
    return _rgb(((x - low) / (high - low).clamp(min=1e-12))[None])


def _scaled(image: Tensor) -> PILImage.Image:
    """(3, H, W), uint8, with a longer side of `SIDE` pixels."""
    from PIL import Image as PILImage

    drawn = to_pil(image)
    zoom = SIDE / max(drawn.size)
    size = (max(round(drawn.width * zoom), 1), max(round(drawn.height * zoom), 1))
    # Pixels stay visible where they are enlarged.
    return drawn.resize(size, PILImage.Resampling.NEAREST if zoom > 1 else PILImage.Resampling.LANCZOS)


def _windowed(image: Tensor, window: Window, scale: int = 1) -> PILImage.Image:
    """The image with the window in it, which is in pixels of `scale` to one of the image; edged, for white ones."""
    x, y, side = window
    drawn = _scaled(image)
    zoom = drawn.width / image.shape[2] / scale
    drawn = framed(drawn, [v * zoom for v in (x, y, x + side, y + side)], BLUE)
    return framed(drawn, (0, 0, drawn.width - 1, drawn.height - 1), LIGHT, 1)


def _around(image: Tensor, window: Window) -> PILImage.Image:
    """The window and what is around it, enlarged: a part with the proportions of the image."""
    x, y, side = window
    zoom = min(CONTEXT * side / min(image.shape[1:]), 1)
    height, width = (max(round(n * zoom), side) for n in image.shape[1:])
    left = min(max(x + (side - width) // 2, 0), image.shape[2] - width)
    top = min(max(y + (side - height) // 2, 0), image.shape[1] - height)
    return _windowed(image[:, top : top + height, left : left + width], (x - left, y - top, side))


def _over(heat: Tensor, image: Tensor, alpha: float) -> Tensor:
    """A map (h, w) in [0, 1] as colors over a gray image (s * h, s * w) in [0, 1]: (3, s * h, s * w), uint8."""
    scale = image.shape[0] // heat.shape[0]
    colors = white_to_red(heat).repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    return ((1 - alpha) * colors + alpha * 255 * image).round().byte()

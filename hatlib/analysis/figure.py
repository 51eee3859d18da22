"""Figures of local attribution maps and of feature maps, with one row for each network."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hatlib.analysis.blocking import blocking_ratio
from hatlib.analysis.diffusion import density
from hatlib.analysis.lam import Attribution
from hatlib.data import imresize
from hatlib.errors import HatlibError
from hatlib.imageio.figure import Panel, panel_figure, panel_size, panel_zoom, write_figure
from hatlib.metrics import rgb_to_y

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_features", "draw_lam", "features_figure", "lam_figure"]

CONTEXT = 3  # height of a close-up, in windows


def draw_lam(
    path: str | os.PathLike, results: Mapping[str, Attribution], original: Tensor | None = None, alpha: float = 0.5
) -> None:
    """Draws attribution maps as in the paper: a row for the image with its window, then a row for each network.

    The row of a network shows the attribution map from white to red, the map over the image, the density of the map
    over the image, and a close-up of the result around the window.

    Args:
        path: image file to write; an existing file is replaced.
        results: results of `lam` for one image and window, by the name of the network.
        original: image at output size; by default the input, enlarged by bicubic interpolation.
        alpha: weight of the image under a map, 0 to 1.

    Shape:
        original: (3 or 1, s * h, s * w), uint8 or floating point in [0, 1]

    Raises:
        HatlibError: if `results` is empty or mixes windows or sizes, or the file cannot be written.
    """
    write_figure(path, lam_figure(results, original, alpha))


def lam_figure(results: Mapping[str, Attribution], original: Tensor | None = None, alpha: float = 0.5) -> Figure:
    """Returns the figure of `draw_lam`."""
    if not results:
        raise HatlibError("There is nothing to draw: no results were given.")
    if not 0 <= alpha <= 1:
        raise HatlibError(f"alpha must be between 0 and 1, got {alpha}.")
    first = next(iter(results.values()))
    if len({(r.window, r.scale, r.map.shape) for r in results.values()}) > 1:
        raise HatlibError("The results must be of one image, window and scale.")
    reference = _rgb(original) if original is not None else imresize(_rgb(first.image), first.scale)
    (height, width), (x, y, side) = reference.shape[1:], first.window
    if (height, width) != first.sr.shape[1:]:
        raise HatlibError(f"original must be {tuple(first.sr.shape[1:])} pixels as the result, got {(height, width)}.")
    zoom = panel_zoom(max(first.map.shape)) / first.scale
    size = panel_size(reference, zoom)
    closer = max(round(min(size) / (CONTEXT * side)), zoom)
    view_width, view_height = min(size[0] / closer, width), min(size[1] / closer, height)
    left = int(min(max(x + (side - view_width) / 2, 0), width - view_width))
    top = int(min(max(y + (side - view_height) / 2, 0), height - view_height))

    def panel(image: Tensor, caption: str, close: bool = False) -> Panel:
        view = (left, top, view_width, view_height) if close else None
        return Panel(image, caption, size, width // image.shape[2], view, first.window)

    name, image = "original" if original is not None else "input, enlarged", _rgb(first.image)
    rows = [
        [
            panel(reference, f"{name}\nwindow {side}x{side} at {x}, {y}"),
            panel(image, f"input, {image.shape[2]}x{image.shape[1]}"),
            panel(image, "input, close-up", close=True),
            panel(reference, f"{name}, close-up", close=True),
        ]
    ]
    backdrop = (rgb_to_y(reference / 255) / 255)[0]  # gray, because red would look like attribution
    for name, result in results.items():
        smooth = density(result.map)
        rows.append(
            [
                panel(white_to_red(result.map), f"{name}, attribution\ndiffusion index {result.di:.2f}"),
                panel(_over(result.map, backdrop, alpha), "attribution over the image"),
                panel(_over(smooth / smooth.max(), backdrop, alpha), "density over the image"),
                panel(_rgb(result.sr), f"{name}, close-up", close=True),
            ]
        )
    return panel_figure(rows)


def draw_features(path: str | os.PathLike, features: Mapping[str, tuple[Sequence[Tensor], int]]) -> None:
    """Draws the feature maps after each group with their blocking ratios, in one row for each network.

    A map is the mean over its channels. The darkest and the brightest hundredth of its pixels are black and white. The
    ratios under a map are those at the borders of windows, half a window further, and elsewhere.

    Args:
        path: image file to write; an existing file is replaced.
        features: feature maps as `feature_maps` returns them, and the window size, by the name of the network.

    Raises:
        HatlibError: if there are no maps, a map is smaller than two windows, or the file cannot be written.
    """
    write_figure(path, features_figure(features))


def features_figure(features: Mapping[str, tuple[Sequence[Tensor], int]]) -> Figure:
    """Returns the figure of `draw_features`."""
    if not features or not all(len(maps) for maps, _ in features.values()):
        raise HatlibError("There is nothing to draw: no feature maps were given.")
    rows = []
    for name, (maps, window) in features.items():
        row = []
        for i, feature in enumerate(maps, 1):
            blocking = blocking_ratio(feature, window)
            ratios = f"ratio {blocking.ratio:.2f} / {blocking.half:.2f} / {blocking.control:.2f}"
            size = panel_size(feature, panel_zoom(max(feature.shape[1:])))
            row.append(Panel(_gray(feature), f"{name}, group {i}\n{ratios}", size))
        rows.append(row)
    return panel_figure(rows)


def white_to_red(heat: Tensor) -> Tensor:
    """Colors for a map in [0, 1]: 0 is white, 1 is red.

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
    """The mean over the channels of (C, H, W) as (1, H, W), uint8."""
    x = feature.float().mean(0, keepdim=True)
    low, high = torch.quantile(x.flatten()[:: max(1, x.numel() // 10**6)], torch.tensor([0.01, 0.99]))
    return ((x - low) / (high - low).clamp(min=1e-12)).clamp(0, 1).mul(255).round().byte()


def _over(heat: Tensor, image: Tensor, alpha: float) -> Tensor:
    """A map (h, w) in [0, 1] as colors over a gray image (s * h, s * w) in [0, 1]: (3, s * h, s * w), uint8."""
    scale = image.shape[0] // heat.shape[0]
    colors = white_to_red(heat).repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    return ((1 - alpha) * colors + alpha * 255 * image).round().byte()

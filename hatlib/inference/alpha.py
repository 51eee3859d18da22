"""Transparency: colors that nobody sees must not show after upscaling, and edges keep no fringe."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def fill_transparent(color: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """Replaces the colors of fully transparent pixels by what is visible near them.

    Those colors are arbitrary (often black), and a network that looks at a neighborhood would mix them into the
    visible edge. They are drawn from a pyramid of alpha-weighted averages, the nearest level that saw anything.

    Shape:
        color: (B, C, H, W); alpha: (B, 1, H, W), both in [0, 1]; result: like color.
    """
    visible = alpha > 0
    if visible.all() or not visible.any():
        return color
    height, width = color.shape[2:]
    if height == 1 and width == 1:
        return color  # part of a batch in which others are visible: nothing to draw from
    odd = (0, width % 2, 0, height % 2)  # zero weight, so that the padding adds no color
    weight = F.avg_pool2d(F.pad(alpha, odd), 2)
    average = F.avg_pool2d(F.pad(color * alpha, odd), 2) / weight.clamp_min(torch.finfo(weight.dtype).tiny)
    coarse = fill_transparent(average, weight)
    around = F.interpolate(coarse, size=(height + odd[3], width + odd[1]), mode="bilinear", align_corners=False)
    return torch.where(visible, color, around[:, :, :height, :width])


def clamp_to_neighbors(alpha: torch.Tensor, low: torch.Tensor, scale: int) -> torch.Tensor:
    """Clamps upscaled alpha to the range of the 3 x 3 input pixels around it.

    A network sharpens edges of alpha as it does those of the colors, but it also leaves traces of one or two levels on
    opaque or empty ground, and rings beside edges. Between its neighbors' extremes it can do neither.

    Shape:
        alpha: (B, 1, scale * H, scale * W); low: (B, 1, H, W), the input's alpha; result: like alpha.
    """
    least, most = -F.max_pool2d(-low, 3, 1, 1), F.max_pool2d(low, 3, 1, 1)
    enlarge = (lambda t: F.interpolate(t, scale_factor=scale, mode="nearest")) if scale > 1 else (lambda t: t)
    return alpha.clamp(enlarge(least), enlarge(most))

"""How far an attribution map spreads: Gini coefficient, diffusion index, and the map's density.

Gu & Dong, "Interpreting Super-Resolution Networks with Local Attribution Maps", CVPR 2021 (arXiv 2011.11036).
"""

import numpy as np
import torch
from torch import Tensor

from hatlib.errors import HatlibError

__all__ = ["density", "diffusion_index", "gini"]

# Added to the normalized map, so that its zeros count as little rather than as nothing.
FLOOR = 1e-7
# Least standard deviation in pixels of the smoothing: below it, the density is the map itself.
NARROWEST = 0.25


def gini(attribution: Tensor | np.ndarray) -> float:
    """Gini coefficient of a map: 0 where all pixels contribute alike, nearly 1 where a single one does.

    G = sum_i (2 i - n - 1) x_i / (n sum_i x_i), with x the map over its maximum plus 1e-7, in ascending order (section
    4.3). A map of zeros counts as an even one.

    Args:
        attribution: the map, of any shape, not negative.

    Raises:
        HatlibError: if the map is empty, or has values that are negative or not finite.
    """
    x = _checked(attribution).flatten()
    x = (x / x.max() if x.max() > 0 else x) + FLOOR
    x = x.sort().values
    n = len(x)
    rank = torch.arange(1, n + 1, dtype=torch.float64)
    return (((2 * rank - n - 1) * x).sum() / (n * x.sum())).item()


def diffusion_index(attribution: Tensor | np.ndarray) -> float:
    """Diffusion index DI = (1 - G) * 100 of an attribution map: 100 for an even map, near 0 for a single pixel.

    It depends on the size of the map: compare networks on one image at one size with one window. See `gini`.

    Args:
        attribution: the map, of any shape, not negative.

    Raises:
        HatlibError: if the map is empty, or has values that are negative or not finite.
    """
    return 100 * (1 - gini(attribution))


def density(attribution: Tensor | np.ndarray) -> Tensor:
    """Kernel density estimate of a map at its pixels: what `scipy.stats.gaussian_kde` gives for weighted pixels.

    The bandwidth is Scott's: the covariance of the weighted pixels times n ** (-1 / 3), with n the effective number of
    them, (sum w) ** 2 / sum w ** 2. All pixels lie on a grid, so the sum over all pairs is one smoothing with a
    Gaussian, done by Fourier transforms: n log n operations in place of n ** 2.

    Shape: (h, w) -> (h, w), float64; sums to about 1

    Raises:
        HatlibError: if the map has another shape, is zero, or has values that are negative or not finite.
    """
    weights = _checked(attribution)
    if weights.ndim != 2 or weights.max() == 0:
        raise HatlibError(f"A density is that of a map (h, w) that is not zero, not of {tuple(weights.shape)}.")
    weights = weights / weights.sum()
    height, width = weights.shape
    values, axes = torch.linalg.eigh(_scott_bandwidth(weights))
    values = values.clamp(min=NARROWEST**2)
    # The Gaussian at all differences of two pixels, from -(h - 1) to h - 1 rows.
    rows = torch.arange(1 - height, height, dtype=torch.float64)
    columns = torch.arange(1 - width, width, dtype=torch.float64)
    offsets = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1) @ axes
    kernel = torch.exp(-0.5 * (offsets.square() / values).sum(-1)) / (2 * torch.pi * values.prod().sqrt())
    size = (2 * height - 1, 2 * width - 1)  # circular convolution of this size wraps nothing into what is kept
    product = torch.fft.rfft2(weights, s=size) * torch.fft.rfft2(kernel.roll((1 - height, 1 - width), (0, 1)))
    return torch.fft.irfft2(product, s=size)[:height, :width].clamp(min=0)


def _scott_bandwidth(weights: Tensor) -> Tensor:
    """Covariance (2, 2) of the smoothing, in pixels; zero if a single pixel has all the weight."""
    grid = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in weights.shape), indexing="ij")
    positions, w = torch.stack(grid, -1).flatten(0, 1), weights.flatten()
    centerd = positions - w @ positions
    concentration = w.square().sum()  # one over the effective number of pixels
    if concentration >= 1:
        return torch.zeros(2, 2, dtype=torch.float64)
    covariance = (centerd * w[:, None]).T @ centerd / (1 - concentration)  # unbiased
    return covariance * concentration ** (1 / 3)  # n ** (-1 / (d + 4)) squared, with d = 2


def _checked(attribution: Tensor | np.ndarray) -> Tensor:
    """The map in float64 on the CPU."""
    if isinstance(attribution, np.ndarray):
        attribution = np.ascontiguousarray(attribution)  # PyTorch takes no negative strides
    x = torch.as_tensor(attribution).detach().to("cpu", torch.float64)
    if x.numel() == 0 or not x.isfinite().all() or x.min() < 0:
        raise HatlibError("An attribution map has one value or more, none of them negative, infinite or NaN.")
    return x

"""MATLAB's bicubic `imresize` in torch, equal to the last bit for 8-bit images.

Nearly every super-resolution benchmark makes its low-resolution images with MATLAB's function, and metrics move by
hundredths of a dB with each deviation from it. The detail that ports usually miss: MATLAB resizes one dimension after
the other and, for an 8-bit image, stores the intermediate image in 8 bits too.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from hatlib.errors import HatlibError

Padding = Literal["symmetric", "replicate"]


def imresize(
    x: Tensor,
    scale: float | Sequence[float] | None = None,
    size: Sequence[int] | None = None,
    padding: Padding = "symmetric",
) -> Tensor:
    """Resize images as MATLAB's `imresize(x, scale, 'bicubic')` does, with its antialiasing when shrinking.

    uint8 images are computed in float64, then rounded (half away from zero) and clipped after each of the two passes.
    Floating-point images are neither rounded nor clipped, and the result is differentiable.

    Args:
        x: Images, uint8 or floating point of any range.
        scale: Factor for both dimensions, or one for (height, width). The output measures ceil(scale * size).
        size: Output (height, width), in place of `scale`.
        padding: How pixels outside the image are found: "symmetric" mirrors them, as MATLAB does today; "replicate"
            repeats the border pixel, as old versions did. The two differ near the border only.

    Returns:
        The resized images, of the dtype and on the device of `x`.

    Shape: (B, C, H, W) or (C, H, W) -> (B, C, H', W') or (C, H', W')

    Raises:
        HatlibError: If `x` is no such image, `padding` is unknown, or `scale` and `size` are both or neither given, or
            not positive.
    """
    if x.ndim not in (3, 4) or 0 in x.shape[-3:]:
        raise HatlibError(f"imresize takes images of shape (B, C, H, W) or (C, H, W), not {tuple(x.shape)}.")
    if x.dtype != torch.uint8 and not x.is_floating_point():
        raise HatlibError(f"imresize takes uint8 or floating-point images, not {x.dtype}; convert the image first.")
    if padding not in ("symmetric", "replicate"):
        raise HatlibError(f"padding must be 'symmetric' or 'replicate', not {padding!r}.")
    scales, sizes = _output_geometry(tuple(x.shape[-2:]), scale, size)
    # Ascending scale, the rows first if equal (sorted() is stable): with 8-bit intermediates the order matters.
    for dim, dim_scale, out_size in sorted(zip((-2, -1), scales, sizes, strict=True), key=lambda step: step[1]):
        if dim_scale != 1 or out_size != x.shape[dim]:
            x = _resize_dim(x, dim, dim_scale, out_size, padding)
    return x


def _output_geometry(
    in_size: tuple[int, int], scale: float | Sequence[float] | None, size: Sequence[int] | None
) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Scale and output size per dimension, from whichever of the two is given."""
    if (scale is None) == (size is None):
        raise HatlibError("imresize needs either scale= or size=, and not both.")
    if size is not None:
        sizes = tuple(size) if isinstance(size, Sequence) else ()
        if len(sizes) != 2 or not all(isinstance(s, int) and s > 0 for s in sizes):
            raise HatlibError(f"size must be two positive whole numbers (height, width), not {size!r}.")
        return tuple(out / n for out, n in zip(sizes, in_size, strict=True)), sizes
    scales = tuple(scale) if isinstance(scale, Sequence) else (scale, scale)
    if len(scales) != 2 or not all(isinstance(s, int | float) and math.isfinite(s) and s > 0 for s in scales):
        raise HatlibError(f"scale must be a positive number, or two of them (height, width), not {scale!r}.")
    return scales, tuple(math.ceil(s * n) for s, n in zip(scales, in_size, strict=True))


def _resize_dim(x: Tensor, dim: int, scale: float, out_size: int, padding: Padding) -> Tensor:
    """Resize one dimension."""
    indices, weights = _contributions(out_size, scale)
    compute_dtype = torch.float64 if x.dtype in (torch.uint8, torch.float64) else torch.float32
    weights = weights.to(x.device, compute_dtype)
    if dim == -2:
        weights = weights.unsqueeze(-1)
    first = min(int(indices.min()), 0)
    padded = _padded(x, dim, first, max(int(indices.max()) + 1, x.shape[dim]), padding).to(compute_dtype)
    indices -= first
    # Of a scale such as 1/4, 3 or 2/3, the outputs k, k + period, k + 2 * period, ... take pixels at equal distances:
    # slices, and not copies by index. One tap after the other, the same order of summation on every device.
    period, step = _period(indices[0])
    if period == 0:
        result = _weighted((padded.index_select(dim, i.to(x.device)) for i in indices), weights)
    elif period == 1:
        result = _weighted((_every(padded, dim, int(i[0]), step, out_size) for i in indices), weights)
    else:
        result = padded.new_empty([out_size if d == x.ndim + dim else n for d, n in enumerate(x.shape)])
        for phase in range(min(period, out_size)):
            target = _every(result, dim, phase, period, len(range(phase, out_size, period)))
            taps = (_every(padded, dim, int(i[phase]), step, target.shape[dim]) for i in indices)
            target.copy_(_weighted(taps, weights[:, phase::period]))
    if x.dtype == torch.uint8:
        result = result.add_(0.5).floor_().clamp_(0, 255)  # after the clip: half away from zero
    return result.to(x.dtype)


def _weighted(taps: Iterator[Tensor], weights: Tensor) -> Tensor:
    """Sum of the taps by their weights."""
    total = next(taps) * weights[0]
    for tap, weight in zip(taps, weights[1:], strict=True):
        total.addcmul_(tap, weight)
    return total


def _every(x: Tensor, dim: int, start: int, step: int, count: int) -> Tensor:
    """A view of `count` positions of a dimension (-1 or -2), `step` apart."""
    part = slice(start, start + step * (count - 1) + 1, step)
    return x[..., part] if dim == -1 else x[..., part, :]


def _padded(x: Tensor, dim: int, first: int, stop: int, padding: Padding) -> Tensor:
    """The pixels from `first` to `stop` of a dimension, of which some lie outside the image."""
    size = x.shape[dim]
    if first == 0 and stop == size:
        return x
    indices = torch.arange(first, stop, device=x.device)
    if padding == "replicate":
        indices = indices.clamp(0, size - 1)
    else:
        indices = indices.remainder(2 * size)
        indices = torch.minimum(indices, 2 * size - 1 - indices)
    return x.index_select(dim, indices)


def _period(indices: Tensor) -> tuple[int, int]:
    """After how many outputs the indices have moved by a constant number of pixels, and by how many; 0 if never."""
    for period in range(1, 9):
        distances = indices[period:] - indices[:-period]
        if len(distances) == 0 or (distances == distances[0]).all():
            return period, int(distances[0]) if len(distances) else 1
    return 0, 0


def _contributions(out_size: int, scale: float) -> tuple[Tensor, Tensor]:
    """For each tap and output pixel the input pixel and its weight: two tensors (taps, out_size), int64 and float64.

    Pixels outside the image have indices below 0, and from its size on.
    """
    stretch = min(scale, 1.0)  # shrinking widens the kernel: antialiasing
    kernel_width = 4 / stretch
    # Positions count pixels from 1 as in MATLAB, so that the arithmetic, and its rounding, is the same.
    u = torch.arange(1, out_size + 1, dtype=torch.float64) / scale + 0.5 * (1 - 1 / scale)
    taps = math.ceil(kernel_width) + 2
    indices = torch.floor(u - kernel_width / 2) + torch.arange(taps, dtype=torch.float64).unsqueeze(1)
    weights = _keys_cubic(stretch * (u - indices))
    weights /= weights.sum(0)
    used = weights.any(1)
    return indices[used].long() - 1, weights[used]


def _keys_cubic(x: Tensor) -> Tensor:
    """Keys' cubic convolution kernel with a = -0.5 (IEEE TASSP 29(6), 1981), which vanishes outside [-2, 2]."""
    x = x.abs()
    x2, x3 = x**2, x**3
    inner = 1.5 * x3 - 2.5 * x2 + 1
    outer = -0.5 * x3 + 2.5 * x2 - 4 * x + 2
    return inner * (x <= 1) + outer * ((x > 1) & (x <= 2))

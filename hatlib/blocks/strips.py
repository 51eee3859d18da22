"""Working over a map in strips, so that temporaries are small, reused and in the cache.

Large temporaries cost twice: they make the peak of the memory, and the system allocator hands them back after each
operation and gets them again, zeroed, page by page. In eager inference on a CPU, attention, MLPs and upsamplers
therefore go over a map piece by piece. With autograd the whole map is kept anyway, a traced graph can't loop over a
size, and a GPU wants few large kernels.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

__all__ = ["add_in_strips", "apply_in_strips", "strips", "tiles", "use_strips"]

# Bound of the largest temporary of a strip: about a core's cache.
STRIP_BYTES = 3 * 2**19
# The same where convolutions have to compute the rows around a strip again: larger, so that these are few.
HALO_STRIP_BYTES = 64 * 2**20


def use_strips(module: nn.Module, x: Tensor) -> bool:
    """Whether a module may work on x in strips: on the CPU, in eager mode, without gradients and without dropout.

    A GPU hides no time behind a small working set; strips would only split its kernels into many tiny ones. With
    dropout, random numbers drawn strip by strip would differ from those drawn for the whole map, and the two passes of
    gradient checkpointing would compute different networks.
    """
    eager = not (module.training or torch.is_grad_enabled() or torch.compiler.is_compiling())
    return eager and x.device.type == "cpu"


def strips(length: int, bytes_each: int, multiple: int = 1, budget: int | None = None) -> Iterator[slice]:
    """Divides `length` rows of `bytes_each` bytes into slices of about equal height within the budget.

    All but the last hold a multiple of `multiple` rows, at least one of it; the budget is `STRIP_BYTES` by default.
    """
    units = -(-length // multiple)
    count = -(-units // max(1, (budget or STRIP_BYTES) // (bytes_each * multiple)))  # how many strips, of equal height
    step = -(-units // max(1, count)) * multiple
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))


def tiles(height: int, width: int, bytes_each: int, multiple: int) -> Iterator[tuple[slice, slice]]:
    """Divides a map with `bytes_each` bytes a pixel into (rows, columns) within the budget, each a multiple."""
    for rows in strips(height, bytes_each * width, multiple):
        for columns in strips(width, bytes_each * (rows.stop - rows.start), multiple):
            yield rows, columns


def add_in_strips(module: nn.Module, x: Tensor, function: Callable[[Tensor], Tensor], width: int) -> Tensor:
    """x + function(x), for a function that treats each pixel of (B, H, W, C) alone; overwrites x in eager inference.

    Args:
        module: whose function it is.
        x: (B, H, W, C), to which nothing but the result is of use afterwards.
        function: (B, h, W, C) -> (B, h, W, C).
        width: channels of its largest temporary.
    """
    if not use_strips(module, x):
        return x + function(x)
    for rows in strips(x.shape[1], x.shape[0] * x.shape[2] * width * x.itemsize):
        x[:, rows] += function(x[:, rows])
    return x


def apply_in_strips(
    module: nn.Module, function: Callable[[Tensor], Tensor], x: Tensor, scale: int, halo: int, width: int
) -> Tensor:
    """function(x), for convolutions that enlarge (B, C, H, W) to (B, C', scale * H, scale * W).

    Args:
        module: whose function it is.
        function: the convolutions, with zero padding.
        x: (B, C, H, W).
        scale: of the function.
        halo: rows of x beyond its own that a row of the result depends on.
        width: channels of the largest temporary, counted at the size of x.
    """
    if not use_strips(module, x):
        return function(x)
    height = x.shape[2]
    parts = list(strips(height, x.shape[0] * x.shape[3] * width * x.itemsize, budget=HALO_STRIP_BYTES))
    if len(parts) == 1:
        return function(x)
    out = None
    for rows in parts:
        top, bottom = max(0, rows.start - halo), min(height, rows.stop + halo)
        part = function(x[:, :, top:bottom])[:, :, (rows.start - top) * scale : (rows.stop - top) * scale]
        if out is None:
            out = part.new_empty(*part.shape[:2], height * scale, part.shape[3])
        out[:, :, rows.start * scale : rows.stop * scale] = part
    return out

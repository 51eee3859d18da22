"""A model on the tiles of an image, coping with what may go wrong: memory that runs out, fp16 that overflows."""

from __future__ import annotations

import copy
import logging
import math
from typing import Any

import torch
from torch import nn

from hatlib.errors import HatlibError
from hatlib.inference.ensemble import self_ensemble
from hatlib.inference.memory import is_out_of_memory
from hatlib.inference.tiling import tiled

_logger = logging.getLogger(__name__)


class TileRunner:
    """Runs a model on tiles (B, in_chans, h, w) of any type and device; results are float32 or wider.

    A tile for which the memory does not suffice is divided into smaller ones, and so are all later ones of that size;
    `limit` tells. A tile whose result is not finite in float16 is computed again in float32, and so are all later ones.

    Args:
        model: the model; it keeps its parameters' type and place.
        dtype: torch.float16 or torch.bfloat16 to compute in by autocast, or None for the model's own.
        ensemble: the mean over the eight ways to turn and mirror the tile.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype | None = None, ensemble: bool = False) -> None:
        if dtype not in (None, torch.float32, torch.float16, torch.bfloat16):
            raise HatlibError(f"A model runs in float32, float16 or bfloat16 here, not in {dtype}.")
        self.model, self.dtype, self.ensemble = model, dtype, ensemble
        self.scale, self.multiple, self.overlap = model.upscale, tile_multiple(model), default_overlap(model)
        self.limit: int | None = None
        self.one_by_one = False

    @property
    def reference(self) -> torch.Tensor:
        """An empty tensor of the model's device and type."""
        parameter = next((p for p in self.model.parameters() if p.is_floating_point()), torch.empty(0))
        return parameter.detach().new_empty(0)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The model's result for a tile, or several of equal size.

        Raises:
            HatlibError: if there is not enough memory for the smallest tile.
        """
        if x.shape[0] > 1 and self.one_by_one:
            return torch.cat([self(image[None]) for image in x])
        if self.limit is None or max(x.shape[2:]) <= self.limit:
            try:
                return self_ensemble(self._finite, x) if self.ensemble else self._finite(x)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
            # Outside the handler, so that the exception no longer holds on to the tensors that filled the memory.
            self._reduce_tile(x)
            return self(x)
        overlap = min(self.overlap, self.limit // 2 // self.multiple * self.multiple)
        return tiled(self, x, scale=self.scale, tile=self.limit, overlap=overlap, multiple=self.multiple)

    def _reduce_tile(self, x: torch.Tensor) -> None:
        if self.reference.is_cuda:
            torch.cuda.empty_cache()
        if x.shape[0] > 1:
            self.one_by_one = True
            return
        side = max(x.shape[2:])
        half = math.ceil(side / 2 / self.multiple) * self.multiple
        if half >= side or half < 2 * self.multiple or side <= 32:
            raise HatlibError(f"Not enough memory, not even for tiles of {side} pixels: use a smaller model or device.")
        self.limit = half
        _logger.warning("Not enough memory for tiles of %d pixels: going on with %d.", side, half)

    def _finite(self, x: torch.Tensor) -> torch.Tensor:
        y = self._forward(x)
        half = y.dtype == torch.float16 or self.dtype == torch.float16
        if half and not torch.isfinite(y).all():
            _logger.warning("The model overflows in float16: going on in float32.")
            self.dtype = None
            if self.reference.dtype == torch.float16:
                self.model = copy.deepcopy(self.model).float()  # the caller's stays as it is
            y = self._forward(x)
        return y.float() if y.dtype in (torch.float16, torch.bfloat16) else y

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        reference = self.reference
        if self.dtype in (torch.float16, torch.bfloat16):
            with torch.autocast(reference.device.type, self.dtype):
                return self.model(x.to(reference))
        return self.model(x.to(reference))


def tile_multiple(model: Any) -> int:
    """The multiple of pixels at which tiles start, so that windows lie as in the whole image.

    This is the model's `multiple`; for networks without it, the `window_size` of the network or of the one it wraps;
    else 1.
    """
    multiple = getattr(model, "multiple", None)
    for owner in (model, getattr(model, "model", None)):
        multiple = getattr(owner, "window_size", None) if multiple is None else multiple
    if multiple is None:
        return 1
    return int(max(multiple)) if isinstance(multiple, (tuple, list)) else int(multiple)


def default_overlap(model: nn.Module) -> int:
    """Pixels that neighboring tiles share unless told otherwise, from what the model's layers see.

    A network of windows: two windows, the reach of a shifted block to both sides. A network of convolutions: twice the
    radius that matters, which is not the sum of the kernels' radii but grows with the square root of their number (Luo
    et al., arXiv 1701.04128): two standard deviations of the sum of independent steps, each uniform over a kernel; from
    8 to 64. 32 if there are no convolutions to be seen, as in an ONNX model.
    """
    window = tile_multiple(model)
    if window > 1:
        return max(16, 2 * window)
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    if not layers:
        return 32 if not list(model.parameters()) else 16
    variance = sum((m.kernel_size[0] ** 2 - 1) / 12 * m.dilation[0] ** 2 for m in layers)
    return min(max(8, math.ceil(4 * math.sqrt(variance))), 64)

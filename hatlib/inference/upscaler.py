"""`Upscaler(model)(image)`: a model applied to a picture in the form it comes in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import nn

from hatlib.device import resolve_device
from hatlib.errors import HatlibError
from hatlib.inference.alpha import clamp_to_neighbors, fill_transparent
from hatlib.inference.memory import auto_tile
from hatlib.inference.runner import TileRunner, default_overlap, tile_multiple
from hatlib.inference.tiling import tile_spans, tiled, tiled_strips

if TYPE_CHECKING:
    from PIL import Image as PILImage

Progress = Callable[[int, int], None]


class Upscaler:
    """Runs a restoration model on tensors, numpy arrays and PIL images, and returns the same kind, clamped.

    A gray image through an RGB model is repeated in three channels, and the mean of the three results is taken: they
    differ by the model's noise alone, which the mean reduces most. Alpha goes through the same model apart from the
    colors, so that both have equally sharp edges, bounded by the alpha around it; colors under full transparency are
    replaced by their visible neighbors' beforehand. The model runs in eval mode under `torch.inference_mode`, and its
    modes are restored. If memory runs out, the tile is halved and the work goes on; if float16 overflows, it goes on in
    float32; both are logged as warnings.

    Args:
        model: maps (B, in_chans, H, W) to (B, out_chans, s * H, s * W) in [0, 1]: one of hatlib's, a foreign one from
            `hatlib.load`, an `OnnxModel`, or any module. Its attributes `upscale`, `in_chans` (3 if absent),
            `window_size` (1 if absent) and `fixed_size` (the only input size it takes, if there is one) are read.
        tile: largest tile in input pixels, None for the whole image at once, 'auto' for what fits into half of the
            free memory.
        overlap: least number of input pixels that tiles share; by default chosen from what the model sees, see
            `default_overlap`, and at most half of a tile.
        batch: tiles that go through the model at once: faster on a GPU where tiles are small.
        self_ensemble: the mean over the eight ways to turn and mirror the image: eight times the work, about 0.1 dB.
        dtype: torch.float16 or torch.bfloat16 to compute in by autocast; None computes in the model's own type.
        device: where the model shall run; it is moved there. None leaves it where it is.

    Raises:
        HatlibError: if the model does not say its scale, or for an impossible tile, type or device.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        tile: int | Literal["auto"] | None = None,
        overlap: int | None = None,
        batch: int = 1,
        self_ensemble: bool = False,
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        scale = getattr(model, "upscale", None)
        if not isinstance(scale, int) or scale < 1:
            raise HatlibError(f"{type(model).__name__} has no attribute `upscale` that says its scale as an integer.")
        if tile is not None and tile != "auto" and (not isinstance(tile, int) or tile < 1):
            raise HatlibError(f"A tile is 1 or more pixels, None or 'auto', not {tile!r}.")
        if (overlap is not None and overlap < 0) or batch < 1:
            raise HatlibError(f"An overlap is 0 or more pixels and a batch 1 or more, not {overlap} and {batch}.")
        self.multiple = tile_multiple(model)
        if (fixed := getattr(model, "fixed_size", None)) and (tile is None or tile == "auto" or tile > min(fixed)):
            tile = min(fixed)
        self.model, self.scale, self.tile, self.overlap, self.batch = model, scale, tile, overlap, batch
        self.in_chans = getattr(model, "in_chans", 3)
        if isinstance(tile, int):
            tile_spans(tile + 1, tile, self._overlap(tile), self.multiple)  # refuses impossible combinations
        if device is not None:
            model.to(resolve_device(device))
        self._runner = TileRunner(model, dtype, self_ensemble)

    def __call__(self, image: Any, *, progress: Progress | None = None) -> Any:
        """Upscales one image, or a batch as a tensor.

        Args:
            image: a tensor (B, C, H, W), floating point in [0, 1]; a numpy array (H, W) or (H, W, C), uint8, uint16 or
                floating point in [0, 1]; or a PIL image of mode 1, L, LA, P, RGB, RGBA or I;16 (1 gives L, P gives RGB
                or RGBA). C is 1 gray, 2 gray + alpha, 3 RGB, 4 RGB + alpha, or the model's own number.
            progress: called as progress(done, total) after each tile.

        Returns:
            The image `scale` times as high and wide, of the same kind and type.

        Raises:
            HatlibError: for another kind or number of channels, or if not even small tiles fit into memory.
        """
        if isinstance(image, torch.Tensor):
            return self._tensor(image, progress)
        if isinstance(image, np.ndarray):
            return self._array(image, progress)
        if hasattr(image, "mode") and hasattr(image, "getbands"):
            return self._pil(image, progress)
        raise HatlibError(f"Upscaler takes a tensor, a numpy array or a PIL image, not {type(image).__name__}.")

    @torch.inference_mode()  # of a generator: within its steps, and not for the caller between them
    def strips(
        self,
        read: Callable[[int, int], np.ndarray],
        height: int,
        width: int,
        *,
        progress: Progress | None = None,
    ) -> Iterator[np.ndarray]:
        """Upscales an image that need not fit into memory, and neither need the result: a row of tiles at a time.

        Equal to a call with the whole array, but for colors under full transparency, which are drawn from the tile
        instead of the image.

        Args:
            read: read(start, stop) gives these rows as an array (stop - start, width, C), uint8 or uint16. It is asked
                for each row once, from top to bottom.
            height: rows of the image.
            width: columns of the image.
            progress: called as progress(done, total) after each tile.

        Yields:
            Strips of the result from top to bottom, (h, scale * width, C), of the same type.

        Raises:
            HatlibError: as a call does.
        """
        rows = _Rows(read)
        with eval_mode(self.model):
            for strip in tiled_strips(
                self._any_channels,
                rows,
                (height, width),
                **self._tiling(height, width, progress),
            ):
                yield _to_pixels(strip[0].clamp_(0, 1), rows.dtype)

    @torch.inference_mode()
    def _tensor(self, x: torch.Tensor, progress: Progress | None) -> torch.Tensor:
        if x.ndim != 4 or not x.is_floating_point() or 0 in x.shape:
            raise HatlibError(f"Expected a floating-point tensor (B, C, H, W), not {tuple(x.shape)} of {x.dtype}.")
        if self._has_alpha(x.shape[1]):  # before it is cut into tiles, which see less
            x = torch.cat((fill_transparent(x[:, :-1], x[:, -1:]), x[:, -1:]), 1)
            function = self._with_alpha
        else:
            function = self._any_channels
        with eval_mode(self.model):
            y = tiled(function, x, **self._tiling(*x.shape[2:], progress)).clamp(0, 1)
        if self._has_alpha(x.shape[1]):  # again, for blended weights sum to one but for a last bit
            y[:, -1:] = clamp_to_neighbors(y[:, -1:], x[:, -1:].clamp(0, 1), self.scale)
        return y

    def _has_alpha(self, channels: int) -> bool:
        return channels in (2, 4) and self.in_chans in (1, 3) and channels - 1 <= self.in_chans

    def _any_channels(self, x: torch.Tensor) -> torch.Tensor:
        """The model on a tile of as many channels as images have."""
        channels = x.shape[1]
        if channels == self.in_chans:
            return self._runner(x)
        if channels == 1 and self.in_chans == 3:
            return self._runner(x.expand(-1, 3, -1, -1)).mean(1, keepdim=True)
        if self._has_alpha(channels):
            return self._with_alpha(torch.cat((fill_transparent(x[:, :-1], x[:, -1:]), x[:, -1:]), 1))
        raise HatlibError(f"The model takes {self.in_chans} channels, the image has {channels}.")

    def _with_alpha(self, x: torch.Tensor) -> torch.Tensor:
        color, alpha = x[:, :-1], x[:, -1:]
        large = self._any_channels(color)
        if (alpha == alpha[:, :, :1, :1]).all():  # opaque or empty, mostly: half the work
            opacity = alpha[:, :, :1, :1].expand(-1, -1, *large.shape[2:]).to(large)
        else:
            opacity = self._runner(alpha.expand(-1, self.in_chans, -1, -1)).mean(1, keepdim=True)
            opacity = clamp_to_neighbors(opacity, alpha.to(opacity), self.scale)
        return torch.cat((large, opacity), 1)

    def _tiling(self, height: int, width: int, progress: Progress | None) -> dict[str, Any]:
        tile = self.tile
        if tile == "auto":
            tile = auto_tile(self.model, height, width, self.multiple, self._runner.reference.device)
        return dict(
            scale=self.scale,
            tile=tile,
            overlap=self._overlap(tile) if tile else 0,
            multiple=self.multiple,
            batch=self.batch,
            progress=progress,
        )

    def _overlap(self, tile: int) -> int:
        if self.overlap is not None:
            return self.overlap
        # Some for small tiles too, for tiles without overlap show their seams.
        return min(default_overlap(self.model), max(tile // 2, self.multiple))

    def _array(self, image: np.ndarray, progress: Progress | None) -> np.ndarray:
        if image.ndim not in (2, 3) or not (
            image.dtype.kind == "f" or image.dtype.newbyteorder("=") in (np.uint8, np.uint16)
        ):
            raise HatlibError(
                f"Expected an array (H, W) or (H, W, C) of uint8, uint16 or float, not {image.shape} of {image.dtype}."
            )
        y = self._tensor(_to_tensor(image.reshape(*image.shape[:2], -1)), progress)[0]
        result = _to_pixels(y, image.dtype)
        return result[:, :, 0] if image.ndim == 2 else result

    def _pil(self, image: PILImage.Image, progress: Progress | None) -> PILImage.Image:
        from PIL import Image as PILImage

        source = image
        if image.mode == "1":
            image = image.convert("L")
        elif image.mode == "P":
            image = image.convert("RGBA" if "transparency" in image.info else "RGB")
        if image.mode not in ("L", "LA", "RGB", "RGBA", "I;16"):
            raise HatlibError(f"A PIL image of mode {image.mode} is not taken: convert it to L, LA, RGB or RGBA first.")
        result = PILImage.fromarray(self._array(np.array(image), progress))
        result.info = {key: source.info[key] for key in ("icc_profile", "exif", "dpi") if key in source.info}
        return result


class _Rows:
    """Rows of an image as tensors, each read once although the tiles share some."""

    def __init__(self, read: Callable[[int, int], np.ndarray]) -> None:
        self.read, self.kept, self.top, self.dtype = read, None, 0, None

    def __call__(self, start: int, stop: int) -> torch.Tensor:
        if self.kept is None:
            self.kept = self.read(start, stop)
            self.dtype = self.kept.dtype
        else:
            self.kept = np.concatenate((self.kept[start - self.top :], self.read(self.top + len(self.kept), stop)))
        self.top = start
        return _to_tensor(self.kept)


def _to_tensor(pixels: np.ndarray) -> torch.Tensor:
    """An array (H, W, C) of uint8, uint16 or float as a tensor (1, C, H, W) in [0, 1]."""
    # Through float32: 16-bit values are exact in it, and torch knows no arithmetic on uint16.
    wide = np.float64 if pixels.dtype.itemsize == 8 else np.float32
    x = torch.from_numpy(np.array(np.moveaxis(pixels, 2, 0)[None], wide, order="C"))
    return x / np.iinfo(pixels.dtype).max if pixels.dtype.kind == "u" else x


@torch.inference_mode()
def _to_pixels(y: torch.Tensor, dtype: np.dtype) -> np.ndarray:
    """A tensor (C, H, W) in [0, 1] as an array (H, W, C) of a type; overwrites the tensor."""
    y = y.mul_(np.iinfo(dtype).max).round_() if dtype.kind == "u" else y
    return np.ascontiguousarray(np.moveaxis(y.numpy(), 0, 2), dtype)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode within the block; afterwards each module has the mode it had, also where they differed."""
    # The head of a RestorationModel is not among its modules.
    modules = [m for module in model.modules() for m in (module, vars(module).get("head")) if isinstance(m, nn.Module)]
    modes = [(module, module.training) for module in modules]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training

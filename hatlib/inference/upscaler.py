"""`Upscaler(model)(image)`: a model applied to a picture in the form it comes in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from hatlib.errors import HatlibError
from hatlib.inference.alpha import bound_by_neighbours, fill_transparent
from hatlib.inference.tiling import tile_spans, tiled

if TYPE_CHECKING:
    from PIL import Image as PILImage

Progress = Callable[[int, int], None]


class Upscaler:
    """Runs a restoration model on tensors, numpy arrays and PIL images, and return the same kind, clamped.

    A gray image through an RGB model is repeated in three channels, and the mean of the three results is taken: they
    differ by the model's noise alone, which the mean reduces most. Alpha goes through the same model apart from the
    colours, so that both have equally sharp edges, bounded by the alpha around it; colours under full transparency are
    replaced by their visible neighbours' beforehand. The model runs in eval mode under `torch.inference_mode`, and its
    modes are restored.

    Args:
        model: maps (B, in_chans, H, W) to (B, out_chans, s * H, s * W) in [0, 1]; its attributes `upscale`, `in_chans`
            (3 if absent) and `window_size` (1 if absent) are read.
        tile: largest tile in input pixels, None for the whole image at once.
        overlap: least number of input pixels that tiles share; by default twice the window and at least 16, less
            for small tiles.
        device: where the model shall run; it is moved there. None leaves it where it is.

    Raises:
        HatlibError: if the model does not say its scale, or for an impossible tile or device.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        tile: int | None = None,
        overlap: int | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        scale = getattr(model, "upscale", None)
        if not isinstance(scale, int) or scale < 1:
            raise HatlibError(f"{type(model).__name__} has no attribute `upscale` that says its scale as an integer.")
        window = getattr(model, "window_size", 1)
        self.multiple = max(window) if isinstance(window, (tuple, list)) else int(window)
        if overlap is None:  # some for small tiles too, for tiles without overlap show their seams
            overlap = min(max(16, 2 * self.multiple), max(tile // 2, self.multiple)) if tile else 0
        if overlap < 0 or (tile is not None and tile < 1):
            raise HatlibError(f"A tile is 1 or more and an overlap 0 or more pixels, not {tile} and {overlap}.")
        if tile is not None:
            tile_spans(tile + 1, tile, overlap, self.multiple)  # refuses impossible combinations
        self.overlap = overlap
        self.model, self.scale, self.tile = model, scale, tile
        self.in_chans = getattr(model, "in_chans", 3)
        if device is not None:
            model.to(_checked_device(device))

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
            HatlibError: for another kind or number of channels.
        """
        if isinstance(image, torch.Tensor):
            return self._tensor(image, progress)
        if isinstance(image, np.ndarray):
            return self._array(image, progress)
        if hasattr(image, "mode") and hasattr(image, "getbands"):
            return self._pil(image, progress)
        raise HatlibError(f"Upscaler takes a tensor, a numpy array or a PIL image, not {type(image).__name__}.")

    @torch.inference_mode()
    def _tensor(self, x: torch.Tensor, progress: Progress | None) -> torch.Tensor:
        if x.ndim != 4 or not x.is_floating_point() or 0 in x.shape:
            raise HatlibError(f"Expected a floating-point tensor (B, C, H, W), not {tuple(x.shape)} of {x.dtype}.")
        channels = x.shape[1]
        with evaluating(self.model):
            if channels == self.in_chans:
                return self._run(x, progress)
            if channels == 1 and self.in_chans == 3:
                return self._run(x.expand(-1, 3, -1, -1), progress).mean(1, keepdim=True)
            if channels in (2, 4) and self.in_chans in (1, 3) and channels - 1 <= self.in_chans:
                return self._with_alpha(x[:, :-1], x[:, -1:], progress)
        raise HatlibError(f"The model takes {self.in_chans} channels, the image has {channels}.")

    def _with_alpha(self, colour: torch.Tensor, alpha: torch.Tensor, progress: Progress | None) -> torch.Tensor:
        if (alpha == alpha[:1, :, :1, :1]).all():  # opaque, mostly: half the work
            large = alpha[:, :, :1, :1].expand(-1, -1, alpha.shape[2] * self.scale, alpha.shape[3] * self.scale)
            return torch.cat((self._tensor(colour, progress), large), 1)
        halves = [(lambda i, n, k=k: progress(k * n + i, 2 * n)) if progress else None for k in (0, 1)]
        colour = self._tensor(fill_transparent(colour, alpha), halves[0])
        large = self._tensor(alpha.expand(-1, self.in_chans, -1, -1), halves[1]).mean(1, keepdim=True)
        return torch.cat((colour, bound_by_neighbours(large, alpha, self.scale)), 1)

    def _run(self, x: torch.Tensor, progress: Progress | None) -> torch.Tensor:
        like = next((p for p in self.model.parameters() if p.is_floating_point()), x)  # its device and type
        y = tiled(
            lambda part: self.model(part.to(like)),
            x,
            scale=self.scale,
            tile=self.tile,
            overlap=self.overlap,
            multiple=self.multiple,
            progress=progress,
        )
        return y.clamp(0, 1)

    def _array(self, image: np.ndarray, progress: Progress | None) -> np.ndarray:
        if image.ndim not in (2, 3) or not (
            image.dtype.kind == "f" or image.dtype.newbyteorder("=") in (np.uint8, np.uint16)
        ):
            raise HatlibError(
                f"Expected an array (H, W) or (H, W, C) of uint8, uint16 or float, not {image.shape} of {image.dtype}."
            )
        whole = image.dtype.kind == "u"
        top = np.iinfo(image.dtype).max if whole else 1
        planes = np.moveaxis(image.reshape(*image.shape[:2], -1), 2, 0)[None]
        # Through float32: 16-bit values are exact in it, and torch knows no arithmetic on uint16.
        x = torch.from_numpy(np.array(planes, np.float64 if image.dtype.itemsize == 8 else np.float32, order="C"))
        y = self._tensor(x / top if whole else x, progress)[0]
        result = (y * top).round_().numpy() if whole else y.numpy()
        result = np.ascontiguousarray(np.moveaxis(result, 0, 2), image.dtype)
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


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode within the block; afterwards each module has the mode it had, also where they differed."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _checked_device(name: str | torch.device) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise HatlibError(f"Cannot use the device '{name}': {reason}.") from error
    return device

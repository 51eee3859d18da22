"""Bicubic interpolation as a network."""

from torch import Tensor, nn

from hatlib.blocks.imresize import imresize
from hatlib.errors import HatlibError

__all__ = ["Bicubic"]


class Bicubic(nn.Module):
    """MATLAB's bicubic interpolation: (B, C, H, W) -> (B, C, scale * H, scale * W), for any number of channels.

    Floating-point images are interpolated without rounding, so gradients flow. The evaluation protocol interpolates in
    8 bits instead (`hatlib.evaluation.bicubic`).

    Args:
        scale: output size over input size.

    Example:
        >>> import torch
        >>> from hatlib.models import Bicubic
        >>> Bicubic(3)(torch.rand(1, 1, 5, 7)).shape
        torch.Size([1, 1, 15, 21])
    """

    def __init__(self, scale: int):
        super().__init__()
        if not isinstance(scale, int) or scale < 1:
            raise HatlibError(f"scale={scale!r} must be a whole number, 1 or more.")
        self.upscale = scale

    def forward(self, x: Tensor) -> Tensor:
        return imresize(x, self.upscale)

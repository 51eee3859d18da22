"""Reconstruction heads: from features at input size to the image at output size.

The published configurations name a head by `upsampler`, and the names of its layers have no prefix: they belong to the
model. A head is therefore written as a module of its own, and the model takes over its layers (see
`hatlib.models.RestorationModel`).
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hatlib.errors import HatlibError
from hatlib.registry import heads, register_head

__all__ = [
    "Head",
    "NearestConvHead",
    "PixelShuffleConvHead",
    "PixelShuffleDirectHead",
    "PixelShuffleHead",
    "PixelShuffleUpsample",
    "SameSizeHead",
    "known_names",
]


class Head(nn.Module):
    """Base class of reconstruction heads: (B, dim, H, W) -> (B, out_chans, scale * H, scale * W).

    A subclass builds its layers, registers under a name (`hatlib.registry.register_head`) and is then available as
    `upsampler=` of every network. In a model, the layers, parameters and buffers of the head belong to the model under
    the names that the head gives them. `forward` therefore uses them by name and does not iterate over `children()`.

    Args:
        dim: channels of the features.
        out_chans: channels of the image.
        scale: output size over input size.
        num_feat: channels inside the head, where the head has a choice.

    Attributes:
        halo: input pixels around its own on which an output pixel depends. The head is computed in strips with this
            border, so a value that is too small gives wrong images. None computes the whole map at once.
        residual: whether the model adds the input image to the result; possible where the channels are equal.
        width: channels of the largest temporary at input size, for memory estimates.
        last_conv: name of the convolution that returns the image, so that weights can be fitted to other channel
            counts; None if there is none.

    Example:
        >>> import hatlib
        >>> from torch import nn
        >>> from hatlib.blocks import Head
        >>> @hatlib.register_head("bilinear")
        ... class BilinearHead(Head):
        ...     halo = 2
        ...     def __init__(self, dim, out_chans, scale, num_feat=64):
        ...         super().__init__(dim, out_chans, scale, num_feat)
        ...         self.conv_last = nn.Conv2d(dim, out_chans, 3, padding=1)
        ...     def forward(self, x):
        ...         x = self.conv_last(x)
        ...         return nn.functional.interpolate(x, scale_factor=self.scale, mode="bilinear")
        >>> hatlib.create_model("hat_t_x4", upsampler="bilinear").upsampler
        'bilinear'
    """

    halo: int | None = None
    residual = False
    last_conv: str | None = None
    attached = False  # set by the model that takes over the layers

    def __init__(self, dim: int, out_chans: int, scale: int, num_feat: int = 64):
        super().__init__()
        self.scale = scale
        self.width = max(dim, num_feat, out_chans) * scale**2

    def init_non_persistent_buffers(self) -> None:
        """Computes the buffers that no checkpoint holds; a head that has some overrides this and calls it itself."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, dim, H, W) -> (B, out_chans, scale * H, scale * W)."""
        raise NotImplementedError


class PixelShuffleUpsample(nn.Sequential):
    """Convolution and pixel shuffle, by 2 as often as needed, or once by 3 (sub-pixel convolution, arXiv 1609.05158).

    (B, num_feat, H, W) -> (B, num_feat, scale * H, scale * W). Scale 1 does nothing.

    Args:
        scale: a power of 2, or 3.
        num_feat: channels.
    """

    def __init__(self, scale: int, num_feat: int):
        if scale == 3:
            factors = [3]
        elif scale >= 1 and scale & (scale - 1) == 0:
            factors = [2] * int(math.log2(scale))
        else:
            raise HatlibError(f"The pixel-shuffle upsampler has the scales 3 and powers of 2, not {scale}.")
        layers: list[nn.Module] = []
        for factor in factors:
            layers += [nn.Conv2d(num_feat, factor**2 * num_feat, 3, 1, 1), nn.PixelShuffle(factor)]
        super().__init__(*layers)


@register_head("pixelshuffle")
class PixelShuffleHead(Head):
    """Convolution to `num_feat` channels, pixel shuffle, last convolution: the head of HAT and classical SwinIR.

    (B, dim, H, W) -> (B, out_chans, scale * H, scale * W). At scale 1 two convolutions are left, as in same-size HAT.
    """

    halo, last_conv = 3, "conv_last"

    def __init__(self, dim: int, out_chans: int, scale: int, num_feat: int = 64):
        super().__init__(dim, out_chans, scale, num_feat)
        self.conv_before_upsample = nn.Sequential(nn.Conv2d(dim, num_feat, 3, 1, 1), nn.LeakyReLU(inplace=True))
        self.upsample = PixelShuffleUpsample(scale, num_feat)
        self.conv_last = nn.Conv2d(num_feat, out_chans, 3, 1, 1)
        self.width = num_feat * scale**2

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_last(self.upsample(self.conv_before_upsample(x)))


@register_head("pixelshuffle+conv")
class PixelShuffleConvHead(Head):
    """Pixel shuffle of the features as they are, last convolution: the head of EDSR and RCAN.

    (B, dim, H, W) -> (B, out_chans, scale * H, scale * W). Does not use `num_feat`.
    """

    halo, last_conv = 3, "conv_last"

    def __init__(self, dim: int, out_chans: int, scale: int, num_feat: int = 64):
        super().__init__(dim, out_chans, scale, num_feat)
        self.upsample = PixelShuffleUpsample(scale, dim)
        self.conv_last = nn.Conv2d(dim, out_chans, 3, 1, 1)
        self.width = dim * scale**2

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_last(self.upsample(x))


@register_head("pixelshuffledirect")
class PixelShuffleDirectHead(Head):
    """One convolution and one pixel shuffle: the head of lightweight SwinIR. Any scale.

    (B, dim, H, W) -> (B, out_chans, scale * H, scale * W). Does not use `num_feat`.
    """

    halo, last_conv = 3, "upsample.0"

    def __init__(self, dim: int, out_chans: int, scale: int, num_feat: int = 64):
        super().__init__(dim, out_chans, scale, num_feat)
        self.upsample = nn.Sequential(nn.Conv2d(dim, scale**2 * out_chans, 3, 1, 1), nn.PixelShuffle(scale))
        self.width = out_chans * scale**2

    def forward(self, x: Tensor) -> Tensor:
        return self.upsample(x)


@register_head("nearest+conv")
class NearestConvHead(Head):
    """Nearest-neighbor enlargement by 2, each followed by a convolution: fewer checkerboards in GAN training.

    (B, dim, H, W) -> (B, out_chans, scale * H, scale * W), for a scale that is a power of 2 (SwinIR, real-world SR).
    """

    halo, last_conv = 3, "conv_last"

    def __init__(self, dim: int, out_chans: int, scale: int, num_feat: int = 64):
        super().__init__(dim, out_chans, scale, num_feat)
        if scale < 2 or scale & (scale - 1):
            raise HatlibError(f"The upsampler 'nearest+conv' has the powers of 2 from 2 on, not {scale}.")
        self.conv_before_upsample = nn.Sequential(nn.Conv2d(dim, num_feat, 3, 1, 1), nn.LeakyReLU(inplace=True))
        self.steps = int(math.log2(scale))
        for i in range(self.steps):
            self.add_module(f"conv_up{i + 1}", nn.Conv2d(num_feat, num_feat, 3, 1, 1))
        self.conv_hr = nn.Conv2d(num_feat, num_feat, 3, 1, 1)
        self.conv_last = nn.Conv2d(num_feat, out_chans, 3, 1, 1)
        self.width = num_feat * scale**2

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_before_upsample(x)
        for i in range(self.steps):
            conv = getattr(self, f"conv_up{i + 1}")
            x = F.leaky_relu(conv(F.interpolate(x, scale_factor=2, mode="nearest")), 0.2)
        return self.conv_last(F.leaky_relu(self.conv_hr(x), 0.2))


@register_head("")
class SameSizeHead(Head):
    """One convolution to what is added to the input image: the head of SwinIR for denoising and JPEG artifacts.

    (B, dim, H, W) -> (B, out_chans, H, W). The model adds the image (`residual`). Does not use `num_feat`.
    """

    halo, last_conv = 3, "conv_last"
    residual = True

    def __init__(self, dim: int, out_chans: int, scale: int = 1, num_feat: int = 64):
        super().__init__(dim, out_chans, scale, num_feat)
        if scale != 1:
            raise HatlibError(f"The head without an upsampler keeps the size: scale must be 1, not {scale}.")
        self.conv_last = nn.Conv2d(dim, out_chans, 3, 1, 1)
        self.width = out_chans

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_last(x)


def known_names() -> set[str]:
    """Names of the parts of all registered heads, which identify weights of another head in a file."""
    names: set[str] = set()
    for name in heads.names():
        for scale in (1, 2, 3, 4, 8):
            try:
                with torch.device("meta"):
                    head = heads.create(name, dim=8, out_chans=3, scale=scale, num_feat=8)
            except Exception:  # not every head has every scale, and a plugin may raise anything
                continue
            names |= {*head._modules, *head._parameters, *head._buffers}
    return names

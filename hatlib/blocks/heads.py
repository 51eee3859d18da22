"""Upsamplers and reconstruction heads: from features at input size to the image at output size.

All take and give (B, C, H, W). A head's children carry the published parameter names. `width` is that of the largest
temporary, in channels at input size.
"""

import math

from torch import Tensor, nn
from torch.nn import functional as F

from hatlib.errors import HatlibError

__all__ = [
    "HEADS",
    "NearestConvHead",
    "PixelShuffleConvHead",
    "PixelShuffleDirectHead",
    "PixelShuffleHead",
    "PixelShuffleUpsample",
    "SameSizeHead",
    "create_head",
]


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
            raise HatlibError(f"The pixel-shuffle upsampler knows the scales 3 and powers of 2, not {scale}.")
        layers: list[nn.Module] = []
        for factor in factors:
            layers += [nn.Conv2d(num_feat, factor**2 * num_feat, 3, 1, 1), nn.PixelShuffle(factor)]
        super().__init__(*layers)


class PixelShuffleHead(nn.Module):
    """Convolution to `num_feat` channels, pixel shuffle, last convolution: HAT's and classical SwinIR's head.

    (B, dim, H, W) -> (B, out_chans, scale * H, scale * W). At scale 1 two convolutions are left, which is what
    same-size HAT has.
    """

    residual = False

    def __init__(self, dim: int, out_chans: int, scale: int, num_feat: int = 64):
        super().__init__()
        self.conv_before_upsample = nn.Sequential(nn.Conv2d(dim, num_feat, 3, 1, 1), nn.LeakyReLU(inplace=True))
        self.upsample = PixelShuffleUpsample(scale, num_feat)
        self.conv_last = nn.Conv2d(num_feat, out_chans, 3, 1, 1)
        self.width = num_feat * scale**2

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_last(self.upsample(self.conv_before_upsample(x)))


class PixelShuffleConvHead(nn.Module):
    """Pixel shuffle of the features as they are, last convolution: the head of EDSR and RCAN.

    (B, dim, H, W) -> (B, out_chans, scale * H, scale * W). Has no use for `num_feat`.
    """

    residual = False

    def __init__(self, dim: int, out_chans: int, scale: int, num_feat: int | None = None):
        super().__init__()
        self.upsample = PixelShuffleUpsample(scale, dim)
        self.conv_last = nn.Conv2d(dim, out_chans, 3, 1, 1)
        self.width = dim * scale**2

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_last(self.upsample(x))


class PixelShuffleDirectHead(nn.Module):
    """One convolution and one pixel shuffle: the head of lightweight SwinIR. Any scale; has no use for `num_feat`.

    (B, dim, H, W) -> (B, out_chans, scale * H, scale * W).
    """

    residual = False

    def __init__(self, dim: int, out_chans: int, scale: int, num_feat: int | None = None):
        super().__init__()
        self.upsample = nn.Sequential(nn.Conv2d(dim, scale**2 * out_chans, 3, 1, 1), nn.PixelShuffle(scale))
        self.width = out_chans * scale**2

    def forward(self, x: Tensor) -> Tensor:
        return self.upsample(x)


class NearestConvHead(nn.Module):
    """Nearest-neighbor enlargement by 2, each followed by a convolution: fewer checkerboards in GAN training.

    (B, dim, H, W) -> (B, out_chans, scale * H, scale * W), for a scale that is a power of 2 (SwinIR, real-world SR).
    """

    residual = False

    def __init__(self, dim: int, out_chans: int, scale: int, num_feat: int = 64):
        super().__init__()
        if scale < 2 or scale & (scale - 1):
            raise HatlibError(f"The upsampler 'nearest+conv' knows the powers of 2 from 2 on, not {scale}.")
        self.conv_before_upsample = nn.Sequential(nn.Conv2d(dim, num_feat, 3, 1, 1), nn.LeakyReLU(inplace=True))
        for i in range(int(math.log2(scale))):
            self.add_module(f"conv_up{i + 1}", nn.Conv2d(num_feat, num_feat, 3, 1, 1))
        self.conv_hr = nn.Conv2d(num_feat, num_feat, 3, 1, 1)
        self.conv_last = nn.Conv2d(num_feat, out_chans, 3, 1, 1)
        self.width = num_feat * scale**2

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_before_upsample(x)
        for name, conv in self.named_children():
            if name.startswith("conv_up"):
                x = F.leaky_relu(conv(F.interpolate(x, scale_factor=2, mode="nearest")), 0.2)
        return self.conv_last(F.leaky_relu(self.conv_hr(x), 0.2))


class SameSizeHead(nn.Module):
    """One convolution to what is added to the input image: SwinIR's head for denoising and JPEG artifacts.

    (B, dim, H, W) -> (B, out_chans, H, W). The model adds the image (`residual`). Has no use for `num_feat`.
    """

    residual = True

    def __init__(self, dim: int, out_chans: int, scale: int = 1, num_feat: int | None = None):
        super().__init__()
        if scale != 1:
            raise HatlibError(f"The head without an upsampler keeps the size: scale must be 1, not {scale}.")
        self.conv_last = nn.Conv2d(dim, out_chans, 3, 1, 1)
        self.width = out_chans

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_last(x)


HEADS: dict[str, type[nn.Module]] = {
    "pixelshuffle": PixelShuffleHead,
    "pixelshuffle+conv": PixelShuffleConvHead,
    "pixelshuffledirect": PixelShuffleDirectHead,
    "nearest+conv": NearestConvHead,
    "": SameSizeHead,
}


def create_head(upsampler: str | None, dim: int, out_chans: int, scale: int, num_feat: int = 64) -> nn.Module:
    """The head that the published configurations call `upsampler`; None means ''."""
    upsampler = upsampler or ""
    if upsampler not in HEADS:
        raise HatlibError(f"upsampler={upsampler!r} is not known; it is one of {', '.join(map(repr, HEADS))}.")
    return HEADS[upsampler](dim, out_chans, scale, num_feat)

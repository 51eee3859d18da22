"""What an image file holds, and which file names are images."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from hatlib.errors import HatlibError

IMAGE_SUFFIXES = {
    ".png": "png",
    ".jpg": "jpeg",
    ".jpeg": "jpeg",
    ".webp": "webp",
    ".tif": "tiff",
    ".tiff": "tiff",
    ".bmp": "bmp",
    ".pbm": "pnm",
    ".pgm": "pnm",
    ".ppm": "pnm",
    ".pnm": "pnm",
}
"""File name suffix (lower case) to format."""

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


@dataclass(frozen=True)
class Header:
    """All of an image file but its pixels.

    Args:
        height: rows.
        width: columns.
        channels: 1 gray, 2 gray + alpha, 3 RGB, 4 RGB + alpha (not premultiplied).
        dtype: uint8 or uint16.
        metadata: ICC profile, EXIF, XMP, IPTC and text under libvips' names, and PNG's color chunks as `png-color`;
            never the orientation, which is already applied to the pixels.
        resolution: horizontal and vertical pixels per millimetre.
        kind: format of the file, one of the values of `IMAGE_SUFFIXES`, or None for an image that is from no file.
    """

    height: int
    width: int
    channels: int
    dtype: np.dtype
    metadata: dict[str, Any] = field(default_factory=dict, repr=False)
    resolution: tuple[float, float] = (1.0, 1.0)
    kind: str | None = None

    @property
    def mode(self) -> str:
        """Kind of channels: L, LA, RGB or RGBA."""
        return MODES[self.channels]

    @property
    def has_alpha(self) -> bool:
        """Whether the last channel is transparency."""
        return self.mode.endswith("A")

    @property
    def bits(self) -> int:
        """Bits per channel: 8 or 16."""
        return 8 * np.dtype(self.dtype).itemsize

    def enlarged(self, scale: int) -> Header:
        """The header of the image `scale` times as high and wide."""
        return replace(self, height=self.height * scale, width=self.width * scale)


@dataclass(frozen=True)
class Image:
    """Pixels as stored in a file, upright, with what is needed to write them back.

    Args:
        pixels: array (H, W, C), uint8 or uint16; C is 1 gray, 2 gray + alpha, 3 RGB, 4 RGB + alpha (not premultiplied).
        metadata: see `Header`.
        resolution: horizontal and vertical pixels per millimetre.
        kind: format of the file it was read from, or None.

    Raises:
        HatlibError: for an array of another shape or type.
    """

    pixels: np.ndarray
    metadata: dict[str, Any] = field(default_factory=dict, repr=False)
    resolution: tuple[float, float] = (1.0, 1.0)
    kind: str | None = None

    def __post_init__(self) -> None:
        """Refuses arrays that no writer understands."""
        shape, dtype = self.pixels.shape, self.pixels.dtype
        if len(shape) != 3 or shape[2] not in MODES or 0 in shape or dtype not in (np.uint8, np.uint16):
            raise HatlibError(f"An Image takes an (H, W, 1..4) array of uint8 or uint16, not {shape} of {dtype}.")

    @property
    def header(self) -> Header:
        """All but the pixels."""
        height, width, channels = self.pixels.shape
        return Header(height, width, channels, self.pixels.dtype, self.metadata, self.resolution, self.kind)

    @property
    def mode(self) -> str:
        """Kind of channels: L, LA, RGB or RGBA."""
        return self.header.mode

    @property
    def has_alpha(self) -> bool:
        """Whether the last channel is transparency."""
        return self.header.has_alpha

    @property
    def bits(self) -> int:
        """Bits per channel: 8 or 16."""
        return self.header.bits

    def with_pixels(self, pixels: np.ndarray) -> Image:
        """The same metadata around other pixels, e.g. the upscaled ones."""
        return replace(self, pixels=pixels)

"""Reading image files: whole, upright and undamaged, or refused in one sentence."""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hatlib.errors import HatlibError
from hatlib.imageio import png
from hatlib.imageio.image import Header, Image

if TYPE_CHECKING:
    import pyvips

MAX_PIXELS = 2**29
"""Largest image read into memory (about 23,000 x 23,000): a header alone must not ask for all of it."""

_VIPS_MODES = {
    ("uchar", "b-w"): 2,
    ("uchar", "srgb"): 4,
    ("ushort", "grey16"): 2,
    ("ushort", "rgb16"): 4,
}  # (sample type, color space): most channels, the last of an even number being alpha

_KEPT_FIELDS = re.compile(
    r"icc-profile-data|exif-.+|xmp-data|iptc-data|photoshop-data|png-comment-.+|image-description|resolution-unit"
)


def read_image(path: str | os.PathLike) -> Image:
    """Reads a PNG, JPEG, WebP, TIFF, BMP or PNM file, known by its content and not by its name.

    Palettes become RGB, gray of fewer than 8 bits becomes 8 bits, a transparent color becomes an alpha channel,
    premultiplied colors become plain ones, and the EXIF orientation is applied. What would lose something is refused:
    several pages, animation, CMYK and Lab, floating point, 16-bit color PNM.

    Shape:
        pixels: (H, W, C), C of 1 to 4, uint8 or uint16.

    Raises:
        HatlibError: if the file can't be opened, is damaged, or holds a kind of image named above.
    """
    with open_image(path) as reader:
        return reader.image()


class ImageReader:
    """An image file, of which rows can be read from top to bottom; closed when the `with` block ends.

    Made by `open_image`. Attributes: `path`, and `header` with size, kind and metadata.
    """

    def __init__(self, path: Path, header: Header, pixels: np.ndarray | pyvips.Image) -> None:
        self.path, self.header, self._pixels = path, header, pixels
        self._region: pyvips.Region | None = None

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Reads rows `start` to `stop` (exclusive) as an array (rows, W, C); rows once passed can't be read again.

        Raises:
            HatlibError: if the file is damaged there.
        """
        if isinstance(self._pixels, np.ndarray):
            return self._pixels[start:stop]
        import pyvips

        width, channels = self.header.width, self.header.channels
        parts = [np.empty(0, self.header.dtype)]
        try:
            self._region = self._region or pyvips.Region.new(self._pixels)
            # A few rows at a time: libvips then decodes no further ahead than it must.
            parts += [
                np.frombuffer(self._region.fetch(0, top, width, min(64, stop - top)), self.header.dtype)
                for top in range(start, stop, 64)
            ]
        except pyvips.Error as error:
            raise _unreadable(self.path, error) from error
        return np.concatenate(parts).reshape(stop - start, width, channels)

    def image(self) -> Image:
        """The whole image.

        Raises:
            HatlibError: if it is damaged, or larger than `MAX_PIXELS`.
        """
        header = self.header
        _refuse_huge(self.path, header.width, header.height)
        if isinstance(self._pixels, np.ndarray):
            pixels = self._pixels
        else:
            import pyvips

            try:
                pixels = np.ascontiguousarray(self._pixels.numpy())
            except pyvips.Error as error:
                raise _unreadable(self.path, error) from error
        pixels = pixels.reshape(header.height, header.width, header.channels)
        return Image(pixels, header.metadata, header.resolution, header.kind)

    def __enter__(self) -> ImageReader:
        return self

    def __exit__(self, *error: object) -> None:
        self._pixels = self._region = None  # libvips closes the file with its last reference


def open_image(path: str | os.PathLike) -> ImageReader:
    """Opens an image file to read it row by row, which takes the memory of some rows for most files.

    Exceptions: BMP and PNM are read whole; interlaced PNG and progressive JPEG are decoded whole; images that have to
    be turned are decoded to a temporary file.

    Raises:
        HatlibError: as `read_image`; damage to pixels shows when they are read.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise HatlibError(f"Cannot read '{path}': {error.strerror}.") from error
    if not head:
        raise HatlibError(f"'{path}' is empty (0 bytes).")
    kind = _sniff(head)
    if kind is None and b"PNG" in head[:6]:
        raise HatlibError(f"'{path}' is a damaged PNG: its first bytes are changed, as by a transfer in text mode.")
    if kind is None:
        raise HatlibError(f"'{path}' is not an image that hatlib reads (PNG, JPEG, WebP, TIFF, BMP, PNM).")
    return _open_pillow(path, kind) if kind in ("bmp", "pnm") else _open_vips(path, kind)


def _sniff(head: bytes) -> str | None:
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "tiff"
    if head.startswith(b"BM"):
        return "bmp"
    if re.match(rb"P[1-6]\s", head):
        return "pnm"
    return None


def _open_vips(path: Path, kind: str) -> ImageReader:
    import pyvips

    def load(access: str) -> pyvips.Image:
        # A source, because a file name with [brackets] would be parsed as load options.
        source = pyvips.Source.new_from_file(os.fspath(path))
        return pyvips.Image.new_from_source(source, "", fail_on="error", access=access)

    try:
        vips = load("sequential")
        _refuse_unsupported(path, kind, vips)
        if "orientation" in vips.get_fields() and vips.get("orientation") != 1:
            vips = load("random").autorot()
        metadata = {name: vips.get(name) for name in vips.get_fields() if _KEPT_FIELDS.fullmatch(name)}
    except pyvips.Error as error:
        raise _unreadable(path, error) from error
    if kind == "png" and (chunks := png.color_chunks(path)):
        metadata["png-color"] = chunks
    dtype = np.dtype(np.uint16 if vips.format == "ushort" else np.uint8)
    header = Header(vips.height, vips.width, vips.bands, dtype, metadata, (vips.xres, vips.yres), kind)
    return ImageReader(path, header, vips)


def _refuse_unsupported(path: Path, kind: str, vips: pyvips.Image) -> None:
    pages = vips.get("n-pages") if "n-pages" in vips.get_fields() else 1
    if pages > 1 or (kind == "png" and png.is_animated(path)):
        what = f"{pages} pages or frames" if pages > 1 else "several frames"
        raise HatlibError(f"'{path}' holds {what}; hatlib takes single images: save each one as a file of its own.")
    if vips.bands > _VIPS_MODES.get((vips.format, vips.interpretation), 0):
        raise HatlibError(
            f"'{path}' is a {vips.interpretation} image with {vips.bands} channels of type {vips.format}; hatlib takes "
            "gray and RGB of 8 or 16 bits, with or without alpha: convert it first."
        )


def _refuse_huge(path: Path, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise HatlibError(f"'{path}' is too large: {width} x {height}, more than {MAX_PIXELS:,} pixels.")


def _open_pillow(path: Path, kind: str) -> ImageReader:
    # The classes themselves: Image.open warns of sizes that are no danger here, where larger ones are refused.
    from PIL.BmpImagePlugin import BmpImageFile
    from PIL.PpmImagePlugin import PpmImageFile

    wide = kind == "pnm" and _pnm_maxval(path) > 255
    try:
        with (BmpImageFile if kind == "bmp" else PpmImageFile)(path) as pil:
            _refuse_huge(path, pil.width, pil.height)
            if wide and pil.mode == "RGB":  # Pillow would drop the lower 8 bits
                raise HatlibError(
                    f"'{path}' is a 16-bit color PNM, of which 8 would be lost: convert it to PNG or TIFF."
                )
            pil.load()
            if pil.mode in ("P", "1"):
                pil = pil.convert("RGB" if pil.mode == "P" else "L")
            if pil.mode not in ("L", "RGB", "RGBA", "I", "I;16"):
                raise HatlibError(f"'{path}' is of mode {pil.mode}; hatlib takes gray and RGB of 8 or 16 bits.")
            pixels = np.array(pil)
    except HatlibError:
        raise
    except (OSError, ValueError, SyntaxError, EOFError, OverflowError, struct.error) as error:
        raise HatlibError(f"'{path}' is not a readable image: truncated or corrupt ({error}).") from error
    if pixels.dtype == np.int32:
        pixels = pixels.astype(np.uint16)
    image = Image(pixels.reshape(*pixels.shape[:2], -1), kind=kind)
    return ImageReader(path, image.header, image.pixels)


def _pnm_maxval(path: Path) -> int:
    """Largest sample value from a PNM header: bitmaps (P1, P4) have none, so 1."""
    with path.open("rb") as file:
        head = re.sub(rb"#[^\r\n]*", b"", file.read(65536))
    found = re.match(rb"P[2356]\s+\d+\s+\d+\s+(\d{1,9})\s", head)
    return int(found[1]) if found else 1


def _unreadable(path: Path, error: pyvips.Error) -> HatlibError:
    return HatlibError(f"'{path}' is not a readable image: {vips_reason(error, path)}.")


def vips_reason(error: pyvips.Error, path: Path) -> str:
    """One clause from the lines of a libvips error: the system's own words, or what the decoder complained about."""
    lines = [line.replace(f"{path}: ", "").strip() for line in str(error).splitlines()[1:]]
    system = [line.removeprefix("system error: ") for line in lines if line.startswith("system error: ")]
    if system:
        return system[0]
    lines = [line for line in lines if line and "set_get_field_type" not in line]  # libtiff on tags it does not know
    reasons = list(dict.fromkeys(re.sub(r"^\w+: ", "", line) for line in lines))
    reason = "; ".join(reasons[:2])
    unsupported = re.search(r"not supported|not configured|whole number of bytes|labq", reason)
    reason = (png.damage(path) if png.is_png(path) else None) or reason  # libpng says little or nothing
    reason = reason or "its compressed data cannot be decoded"
    return f"{'of an unsupported kind' if unsupported else 'truncated or corrupt'} ({reason})"

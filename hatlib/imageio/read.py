"""Reading image files: whole, upright and undamaged, or refused in one sentence."""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hatlib.errors import HatlibError
from hatlib.imageio.image import Image

if TYPE_CHECKING:
    import pyvips

MAX_PIXELS = 2**29
"""Largest image read into memory (about 23,000 x 23,000): a header alone must not ask for all of it."""

_VIPS_MODES = {
    ("uchar", "b-w"): 2,
    ("uchar", "srgb"): 4,
    ("ushort", "grey16"): 2,
    ("ushort", "rgb16"): 4,
}  # (sample type, colour space): most channels, the last of an even number being alpha

_KEPT_FIELDS = re.compile(
    r"icc-profile-data|exif-.+|xmp-data|iptc-data|photoshop-data|png-comment-.+|image-description|resolution-unit"
)


def read_image(path: str | os.PathLike) -> Image:
    """Reads a PNG, JPEG, WebP, TIFF, BMP or PNM file, known by its content and not by its name.

    Palettes become RGB, gray of fewer than 8 bits becomes 8 bits, a transparent colour becomes an alpha channel, and
    the EXIF orientation is applied. What would lose something is refused: several pages, animation, CMYK and Lab,
    floating point, 16-bit colour PNM.

    Shape:
        pixels: (H, W, C), C of 1 to 4, uint8 or uint16.

    Raises:
        HatlibError: if the file can't be opened, is damaged, or holds a kind of image named above.
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
    if kind is None:
        raise HatlibError(f"'{path}' is not an image that hatlib reads (PNG, JPEG, WebP, TIFF, BMP, PNM).")
    return _read_pillow(path, kind) if kind in ("bmp", "pnm") else _read_vips(path, kind)


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


def _read_vips(path: Path, kind: str) -> Image:
    import pyvips

    try:
        # A source, because a file name with [brackets] would be parsed as load options.
        source = pyvips.Source.new_from_file(os.fspath(path))
        vips = pyvips.Image.new_from_source(source, "", fail_on="error")
        _refuse_unsupported(path, kind, vips)
        vips = vips.autorot()
        pixels = np.ascontiguousarray(vips.numpy()).reshape(vips.height, vips.width, vips.bands)
        metadata = {name: vips.get(name) for name in vips.get_fields() if _KEPT_FIELDS.fullmatch(name)}
    except pyvips.Error as error:
        raise HatlibError(f"'{path}' is not a readable image: {vips_reason(error, path)}.") from error
    return Image(pixels, metadata, (vips.xres, vips.yres))


def _refuse_unsupported(path: Path, kind: str, vips: pyvips.Image) -> None:
    if vips.width * vips.height > MAX_PIXELS:
        raise HatlibError(f"'{path}' is too large: {vips.width} x {vips.height}, more than {MAX_PIXELS:,} pixels.")
    pages = vips.get("n-pages") if "n-pages" in vips.get_fields() else 1
    if pages > 1 or (kind == "png" and _is_animated_png(path)):
        what = f"{pages} pages or frames" if pages > 1 else "several frames"
        raise HatlibError(f"'{path}' holds {what}; hatlib takes single images: save each one as a file of its own.")
    if vips.bands > _VIPS_MODES.get((vips.format, vips.interpretation), 0):
        raise HatlibError(
            f"'{path}' is a {vips.interpretation} image with {vips.bands} channels of type {vips.format}; hatlib takes "
            "gray and RGB of 8 or 16 bits, with or without alpha: convert it first."
        )


def _is_animated_png(path: Path) -> bool:
    """Looks for the acTL chunk before the pixels: libvips shows the first frame of an animation as if it were all."""
    with path.open("rb") as file:
        file.seek(8)
        while len(header := file.read(8)) == 8:
            length, name = struct.unpack(">I4s", header)
            if name in (b"acTL", b"IDAT"):
                return name == b"acTL"
            file.seek(length + 4, os.SEEK_CUR)
    return False


def _read_pillow(path: Path, kind: str) -> Image:
    from PIL import Image as PILImage

    wide = kind == "pnm" and _pnm_maxval(path) > 255
    try:
        with PILImage.open(path, formats=["BMP", "PPM"]) as pil:
            if pil.width * pil.height > MAX_PIXELS:
                raise HatlibError(
                    f"'{path}' is too large: {pil.width} x {pil.height}, more than {MAX_PIXELS:,} pixels."
                )
            if wide and pil.mode == "RGB":  # Pillow would drop the lower 8 bits
                raise HatlibError(
                    f"'{path}' is a 16-bit colour PNM, of which 8 would be lost: convert it to PNG or TIFF."
                )
            pil.load()
            if pil.mode in ("P", "1"):
                pil = pil.convert("RGB" if pil.mode == "P" else "L")
            if pil.mode not in ("L", "RGB", "RGBA", "I", "I;16"):
                raise HatlibError(f"'{path}' is of mode {pil.mode}; hatlib takes gray and RGB of 8 or 16 bits.")
            pixels = np.array(pil)
    except HatlibError:
        raise
    except PILImage.DecompressionBombError as error:
        raise HatlibError(f"'{path}' is too large ({error}).") from error
    except (OSError, ValueError, SyntaxError, EOFError, OverflowError, struct.error) as error:
        raise HatlibError(f"'{path}' is not a readable image: truncated or corrupt ({error}).") from error
    if pixels.dtype == np.int32:
        pixels = pixels.astype(np.uint16)
    return Image(pixels.reshape(*pixels.shape[:2], -1))


def _pnm_maxval(path: Path) -> int:
    """Largest sample value from a PNM header: bitmaps (P1, P4) have none, so 1."""
    with path.open("rb") as file:
        head = re.sub(rb"#[^\r\n]*", b"", file.read(65536))
    found = re.match(rb"P[2356]\s+\d+\s+\d+\s+(\d{1,9})\s", head)
    return int(found[1]) if found else 1


def vips_reason(error: pyvips.Error, path: Path) -> str:
    """One clause from the lines of a libvips error: the system's own words, or what the decoder complained about."""
    lines = [line.replace(f"{path}: ", "").strip() for line in str(error).splitlines()[1:]]
    system = [line.removeprefix("system error: ") for line in lines if line.startswith("system error: ")]
    if system:
        return system[0]
    reasons = list(dict.fromkeys(re.sub(r"^\w+: ", "", line) for line in lines if line))
    reason = "; ".join(reasons[:2]) or "the decoder gave no reason"
    unsupported = re.search(r"not supported|not configured|whole number of bytes|labq", reason)
    return f"{'of an unsupported kind' if unsupported else 'truncated or corrupt'} ({reason})"

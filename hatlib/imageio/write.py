"""Writing image files: the whole file under its name, or nothing."""

from __future__ import annotations

import io
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from hatlib.errors import HatlibError
from hatlib.imageio.image import SUFFIXES, Image
from hatlib.imageio.read import vips_reason


def write_image(path: str | os.PathLike, image: Image, *, quality: int = 95) -> None:
    """Writes an image in the format of the path's suffix, atomically: the file is complete or not there.

    PNG and TIFF hold everything, WebP 8 bits with alpha (gray becomes RGB), JPEG 8 bits without alpha; these four carry
    the metadata. BMP and PNM hold 8 bits without alpha and no metadata. An existing file is replaced.

    Args:
        path: the file, with a suffix of `SUFFIXES`.
        image: pixels and metadata.
        quality: 1 to 100, for JPEG and WebP.

    Raises:
        HatlibError: if the format can't hold the image, or the file can't be written.
    """
    path = Path(path)
    kind = check_output(path, image)
    with atomic_path(path) as temporary:
        if kind in ("bmp", "pnm"):
            _write_pillow(temporary, image, kind)
        else:
            _write_vips(path, temporary, image, kind, quality)


def check_output(path: str | os.PathLike, image: Image | None = None) -> str:
    """Checks before the work is done that a file can be written, and give its format.

    Raises:
        HatlibError: for an unknown suffix, a folder that does not exist, or an image that the format can't hold.
    """
    path = Path(path)
    kind = SUFFIXES.get(path.suffix.lower())
    if kind is None:
        raise HatlibError(f"Cannot write '{path}': its name must end in one of {', '.join(SUFFIXES)}.")
    if path.is_dir():
        raise HatlibError(f"Cannot write '{path}': it is a folder.")
    if not path.parent.is_dir():
        raise HatlibError(f"Cannot write '{path}': there is no folder '{path.parent}'.")
    if image is not None:
        if path.suffix.lower() == ".pbm" or (path.suffix.lower() == ".pgm" and len(image.mode) > 2):
            raise HatlibError(
                f"Cannot write '{path}': the format does not hold {image.mode} images; choose PNG or PPM."
            )
        if image.has_alpha and kind in ("jpeg", "bmp", "pnm"):
            raise HatlibError(f"Cannot write '{path}': {kind} holds no transparency; choose PNG, WebP or TIFF.")
        if image.bits > 8 and kind not in ("png", "tiff"):
            raise HatlibError(f"Cannot write '{path}': {kind} holds 8 bits, the image has 16; choose PNG or TIFF.")
    return kind


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, renamed to it if the block succeeds and removed if it does not.

    Raises:
        HatlibError: if the file system refuses.
    """
    path = path.resolve()  # write through a symlink instead of replacing it
    # A short name of its own: the suffix and 200 characters of the user's name must not exceed the system's limit.
    temporary = path.parent / f".hatlib-{uuid.uuid4().hex}.part"
    try:
        temporary.open("xb").close()
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise HatlibError(f"Cannot write '{path}': {error.strerror or error}.") from error
    finally:
        temporary.unlink(missing_ok=True)


def _write_vips(path: Path, temporary: Path, image: Image, kind: str, quality: int) -> None:
    import pyvips

    height, width, channels = image.pixels.shape
    wide = image.bits == 16
    colour = channels > 2
    vips = pyvips.Image.new_from_memory(
        np.ascontiguousarray(image.pixels).data, width, height, channels, "ushort" if wide else "uchar"
    ).copy(
        interpretation=(("grey16", "rgb16") if wide else ("b-w", "srgb"))[colour],
        xres=image.resolution[0],
        yres=image.resolution[1],
    )
    kinds = pyvips.GValue
    types = {bytes: kinds.blob_type, str: kinds.gstr_type, int: kinds.gint_type, float: kinds.gdouble_type}
    for name, value in image.metadata.items():
        vips.set_type(types[type(value)], name, value)
    if "exif-data" in image.metadata:  # which still says how the camera was held; the pixels are upright by now
        vips.set_type(kinds.gint_type, "orientation", 1)
    try:
        if kind == "png":
            vips.pngsave(str(temporary))
        elif kind == "jpeg":
            vips.jpegsave(str(temporary), Q=quality, optimize_coding=True)
        elif kind == "webp":
            vips.webpsave(str(temporary), Q=quality)
        else:
            vips.tiffsave(str(temporary), compression="deflate", predictor="horizontal")
    except pyvips.Error as error:
        raise HatlibError(f"Cannot write '{path}': {vips_reason(error, temporary)}.") from error


def _write_pillow(temporary: Path, image: Image, kind: str) -> None:
    from PIL import Image as PILImage

    pixels = image.pixels[:, :, 0] if image.mode == "L" else image.pixels
    # Pillow's own writing to a file overlooks a disk that is full; Python's does not.
    buffer = io.BytesIO()
    PILImage.fromarray(pixels).save(buffer, format="BMP" if kind == "bmp" else "PPM")
    temporary.write_bytes(buffer.getbuffer())

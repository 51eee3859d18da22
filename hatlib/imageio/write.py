"""Writing image files: the whole file under its name, or nothing; all at once or row by row."""

from __future__ import annotations

import io
import os
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hatlib.atomic import atomic_path
from hatlib.errors import HatlibError
from hatlib.imageio import png
from hatlib.imageio.image import IMAGE_SUFFIXES, Header, Image
from hatlib.imageio.read import vips_reason

if TYPE_CHECKING:
    import pyvips

ROW_WISE = ("png", "jpeg", "tiff")
"""Formats that can be written row by row."""

_LONGEST_SIDE = {"jpeg": 65535, "webp": 16383, "png": 1_000_000}


def write_image(path: str | os.PathLike, image: Image, *, quality: int = 95) -> None:
    """Writes an image in the format of the path's suffix, atomically: the file is complete or not there.

    PNG and TIFF hold everything, WebP 8 bits with alpha (gray becomes RGB), JPEG 8 bits without alpha; these four carry
    the metadata. BMP and PNM hold 8 bits without alpha and no metadata. An existing file is replaced.

    Args:
        path: the file, with a suffix of `IMAGE_SUFFIXES`.
        image: pixels and metadata.
        quality: 1 to 100, for JPEG and WebP.

    Raises:
        HatlibError: if the format can't hold the image, or the file can't be written.
    """
    path = Path(path)
    kind = check_output(path, image.header)
    pixels = _usual_gamma(image.pixels, image.header, kind)
    with atomic_path(path) as temporary:
        if kind in ("bmp", "pnm"):
            _write_pillow(temporary, pixels, kind)
        else:
            _save_vips(path, temporary, _vips_image(pixels), image.header, kind, quality)


def check_output(path: str | os.PathLike, header: Header | None = None) -> str:
    """Checks before the work is done that a file can be written, and gives its format.

    Args:
        path: the file to be.
        header: the image to be, where it is known already.

    Raises:
        HatlibError: for an unknown suffix, a folder that does not exist, or an image that the format can't hold.
    """
    path = Path(path)
    kind = IMAGE_SUFFIXES.get(path.suffix.lower())
    if kind is None:
        raise HatlibError(f"Cannot write '{path}': its name must end in one of {', '.join(IMAGE_SUFFIXES)}.")
    try:
        if path.is_dir():
            raise HatlibError(f"Cannot write '{path}': it is a folder.")
        if not path.parent.is_dir():
            raise HatlibError(f"Cannot write '{path}': there is no folder '{path.parent}'.")
    except OSError as error:  # such as a name that is too long
        raise HatlibError(f"Cannot write '{path}': {error.strerror}.") from error
    if header is not None:
        if path.suffix.lower() == ".pbm" or (path.suffix.lower() == ".pgm" and len(header.mode) > 2):
            raise HatlibError(
                f"Cannot write '{path}': the format does not hold {header.mode} images; choose PNG or PPM."
            )
        if header.has_alpha and kind in ("jpeg", "bmp", "pnm"):
            raise HatlibError(f"Cannot write '{path}': {kind} holds no transparency; choose PNG, WebP or TIFF.")
        if header.bits > 8 and kind not in ("png", "tiff"):
            raise HatlibError(f"Cannot write '{path}': {kind} holds 8 bits, the image has 16; choose PNG or TIFF.")
        if max(header.height, header.width) > (longest := _LONGEST_SIDE.get(kind, 2**31 - 1)):
            raise HatlibError(
                f"Cannot write '{path}': {kind} holds up to {longest} pixels a side, the image has {header.width} x "
                f"{header.height}; choose {'TIFF' if kind == 'png' else 'PNG or TIFF'}."
            )
    return kind


class ImageWriter:
    """Takes the rows of an image from top to bottom; made by `image_writer`.

    The rows go as an uncompressed PNG through a pipe to a thread in which libvips encodes the file: it takes what it
    can encode, the caller waits meanwhile, and neither holds more than some rows.
    """

    def __init__(self, path: Path, temporary: Path, header: Header, kind: str, quality: int) -> None:
        self._header, self._kind, self._written = header, kind, 0
        self._error: HatlibError | None = None
        source, sink = os.pipe()
        self._pipe = open(sink, "wb")  # closed by `close` or `abort`
        self._thread = threading.Thread(target=self._encode, args=(source, path, temporary, quality), daemon=True)
        self._thread.start()
        self._deflate = zlib.compressobj(0)
        color = {1: 0, 2: 4, 3: 2, 4: 6}[header.channels]
        size = header.width.to_bytes(4, "big") + header.height.to_bytes(4, "big")
        self._send(png.SIGNATURE + png.chunk(b"IHDR", size + bytes((header.bits, color, 0, 0, 0))))

    def write(self, rows: np.ndarray) -> None:
        """Writes the next rows, an array (rows, W, C) of the header's type.

        Raises:
            HatlibError: for rows of another shape or type, or if the file could not be written.
        """
        if self._error is not None:
            raise self._error
        shape = (rows.shape[0], self._header.width, self._header.channels)
        if rows.shape != shape or rows.dtype != self._header.dtype:
            raise HatlibError(
                f"Expected rows of shape {shape} and {self._header.dtype}, not {rows.shape}, {rows.dtype}."
            )
        rows = _usual_gamma(rows, self._header, self._kind)
        big_endian = np.ascontiguousarray(rows, rows.dtype.newbyteorder(">"))
        lines = np.zeros((shape[0], 1 + shape[1] * shape[2] * rows.itemsize), np.uint8)  # each begins with filter 0
        lines[:, 1:] = big_endian.view(np.uint8).reshape(shape[0], -1)
        self._send_data(self._deflate.compress(lines.data))
        self._written += shape[0]

    def close(self) -> None:
        """Waits for the encoder.

        Raises:
            HatlibError: if rows are missing, or the file could not be written.
        """
        if self._written != self._header.height and self._error is None:
            raise HatlibError(f"{self._written} of {self._header.height} rows were written.")
        self._send_data(self._deflate.flush())
        self._send(png.chunk(b"IEND", b""))
        self.abort()
        if self._error is not None:
            raise self._error

    def abort(self) -> None:
        """Stops; what was encoded so far is of no use."""
        self._pipe.close()
        self._thread.join()

    def _send_data(self, data: bytes) -> None:
        for start in range(0, len(data), 2**24):
            self._send(png.chunk(b"IDAT", data[start : start + 2**24]))

    def _send(self, data: bytes) -> None:
        self._pipe.write(data)
        self._pipe.flush()

    def _encode(self, pipe: int, path: Path, temporary: Path, quality: int) -> None:
        import pyvips

        try:
            source = pyvips.Source.new_from_descriptor(pipe)
            vips = pyvips.Image.new_from_source(source, "", access="sequential", fail_on="error")
            _save_vips(path, temporary, vips, self._header, self._kind, quality)
        except (HatlibError, OSError) as error:
            self._error = HatlibError(str(error))  # without a traceback, which would hold on to the source
        except pyvips.Error as error:
            self._error = HatlibError(f"Cannot write '{path}': {vips_reason(error, temporary)}.")
        finally:
            while os.read(pipe, 2**20):  # nobody may wait for a reader that has gone
                pass
            os.close(pipe)


@contextmanager
def image_writer(path: str | os.PathLike, header: Header, *, quality: int = 95) -> Iterator[ImageWriter]:
    """Writes an image row by row, atomically: the file appears when the block has succeeded.

    Args:
        path: the file, with a suffix of a format in `ROW_WISE`.
        header: size, kind and metadata of the image.
        quality: 1 to 100, for JPEG.

    Raises:
        HatlibError: if the format can't hold the image or be written row by row, or the file can't be written.
    """
    path = Path(path)
    kind = check_output(path, header)
    if kind not in ROW_WISE:
        raise HatlibError(f"Cannot write '{path}' row by row: choose {', '.join(ROW_WISE)}.")
    with atomic_path(path) as temporary:
        writer = ImageWriter(path, temporary, header, kind, quality)
        try:
            yield writer
            writer.close()
        finally:
            writer.abort()


def _vips_image(pixels: np.ndarray) -> pyvips.Image:
    import pyvips

    height, width, channels = pixels.shape
    format = "ushort" if pixels.dtype == np.uint16 else "uchar"
    return pyvips.Image.new_from_memory(np.ascontiguousarray(pixels).data, width, height, channels, format)


def _save_vips(path: Path, temporary: Path, vips: pyvips.Image, header: Header, kind: str, quality: int) -> None:
    import pyvips

    wide, color = header.bits == 16, header.channels > 2
    vips = vips.copy(
        interpretation=(("grey16", "rgb16") if wide else ("b-w", "srgb"))[color],
        xres=header.resolution[0],
        yres=header.resolution[1],
    )
    kinds = pyvips.GValue
    types = {bytes: kinds.blob_type, str: kinds.gstr_type, int: kinds.gint_type, float: kinds.gdouble_type}
    for name, value in header.metadata.items():
        if name != "png-color":
            vips.set_type(types[type(value)], name, value)
    if "exif-data" in header.metadata:  # which still says how the camera was held; the pixels are upright by now
        vips.set_type(kinds.gint_type, "orientation", 1)
    try:
        if kind == "png":
            vips.pngsave(str(temporary))
        elif kind == "jpeg":
            vips.jpegsave(str(temporary), Q=quality, optimize_coding=True)
        elif kind == "webp":
            _with_color_profile(vips, header).webpsave(str(temporary), Q=quality)
        else:
            size = header.height * header.width * header.channels * header.bits // 8
            large = size > 2**31  # offsets of 32 bits end at 4 GiB, compressed or not
            vips.tiffsave(str(temporary), compression="deflate", predictor="horizontal", bigtiff=large)
    except pyvips.Error as error:
        raise HatlibError(f"Cannot write '{path}': {vips_reason(error, temporary)}.") from error
    if kind == "png" and "icc-profile-data" not in header.metadata and (chunks := header.metadata.get("png-color")):
        png.insert_after_header(temporary, chunks)


def _with_color_profile(vips: pyvips.Image, header: Header) -> pyvips.Image:
    """WebP knows no gray, so a gray profile would be one for the wrong number of channels: to sRGB with its colors."""
    profile = header.metadata.get("icc-profile-data", b"")
    if header.channels > 2 or profile[16:20] != b"GRAY":
        return vips
    return vips.icc_transform("srgb", embedded=True, intent="relative")


def _usual_gamma(pixels: np.ndarray, header: Header, kind: str) -> np.ndarray:
    """Samples of a PNG with a gamma of its own, for a format that can't tell of it."""
    if kind == "png" or "icc-profile-data" in header.metadata:
        return pixels
    exponent = png.gamma_exponent(header.metadata.get("png-color", b""))
    return pixels if exponent is None else png.apply_gamma(pixels, exponent, header.channels - header.has_alpha)


def _write_pillow(temporary: Path, pixels: np.ndarray, kind: str) -> None:
    from PIL import Image as PILImage

    pixels = pixels[:, :, 0] if pixels.shape[2] == 1 else pixels
    # Pillow's own writing to a file overlooks a disk that is full; Python's does not.
    buffer = io.BytesIO()
    PILImage.fromarray(pixels).save(buffer, format="BMP" if kind == "bmp" else "PPM")
    temporary.write_bytes(buffer.getbuffer())

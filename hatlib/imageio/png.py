"""What libvips does not tell of PNG files: animation, color chunks, and what exactly is wrong with a damaged one."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

SIGNATURE = b"\x89PNG\r\n\x1a\n"
HEADER_END = len(SIGNATURE) + 25  # the signature and the chunk IHDR
COLOR_CHUNKS = (b"gAMA", b"cHRM", b"sRGB", b"cICP")
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}  # by color type
_BLOCK = 2**24
_LONGEST = 2**26  # a color chunk is short, and a damaged length must not ask for memory


def chunk(name: bytes, data: bytes) -> bytes:
    """A chunk with its length and checksum."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def is_png(path: Path) -> bool:
    """Whether a file is there and begins as a PNG does."""
    try:
        with path.open("rb") as file:
            return file.read(len(SIGNATURE)) == SIGNATURE
    except OSError:
        return False


def is_animated(path: Path) -> bool:
    """Whether there is an acTL chunk before the pixels: libvips shows the first frame as if it were all."""
    with path.open("rb") as file:
        return any(name == b"acTL" for name, _ in _chunks(file))


def color_chunks(path: Path) -> bytes:
    """The chunks that say what the samples mean (`COLOR_CHUNKS`), as they stand in the file."""
    with path.open("rb") as file:
        found = [(name, _data(file, length)) for name, length in _chunks(file) if name in COLOR_CHUNKS]
    return b"".join(chunk(name, data) for name, data in found if data)


def gamma_exponent(chunks: bytes) -> float | None:
    """What to raise samples in [0, 1] to so that they have the usual gamma of 1 / 2.2; None if they have it.

    Args:
        chunks: as by `color_chunks`. A chunk sRGB or cICP overrides gAMA.
    """
    if b"sRGB" in chunks or b"cICP" in chunks or b"gAMA" not in chunks:
        return None
    at = chunks.index(b"gAMA") + 4
    gamma = struct.unpack(">I", chunks[at : at + 4])[0] / 100_000
    exponent = 1 / (2.2 * gamma) if gamma > 0 else 1
    return None if abs(exponent - 1) < 0.02 else exponent


def apply_gamma(pixels: np.ndarray, exponent: float, colors: int) -> np.ndarray:
    """Raises the first `colors` channels of whole-number pixels (H, W, C) to an exponent."""
    top = np.iinfo(pixels.dtype).max
    table = np.round((np.arange(top + 1) / top) ** exponent * top).astype(pixels.dtype)
    pixels = pixels.copy()
    pixels[:, :, :colors] = table[pixels[:, :, :colors]]
    return pixels


def insert_after_header(path: Path, chunks: bytes) -> None:
    """Inserts chunks into a PNG file where color chunks belong, and removes nothing."""
    with path.open("rb+") as file:
        position = os.fstat(file.fileno()).st_size
        while position > HEADER_END:  # from the end, so that nothing is overwritten before it is moved
            start = max(position - _BLOCK, HEADER_END)
            file.seek(start)
            data = file.read(position - start)
            file.seek(start + len(chunks))
            file.write(data)
            position = start
        file.seek(HEADER_END)
        file.write(chunks)


def damage(path: Path) -> str | None:
    """What is wrong with the structure of a PNG file, in a clause; None if nothing is, outside the compressed data."""
    pixels = finished = False
    with path.open("rb") as file:
        file.seek(len(SIGNATURE))
        while not finished:
            header = file.read(8)
            if len(header) < 8:
                return "the file ends too early"
            length, name = struct.unpack(">I4s", header)
            if not name.isalpha():
                return "a chunk has no proper name"
            data = _data(file, length, seek=False)
            crc = file.read(4)
            if data is None or len(crc) < 4:
                return f"the file ends within the chunk {name.decode()}"
            if zlib.crc32(name + data) != int.from_bytes(crc, "big"):
                return f"the checksum of the chunk {name.decode()} is wrong"
            if name == b"IHDR" and len(data) == 13:
                depth, kind = data[8], data[9]
                if kind not in _DEPTHS:
                    return f"color type {kind} does not exist"
                if depth not in _DEPTHS[kind]:
                    return f"there are no {depth} bits per sample with color type {kind}"
            pixels |= name == b"IDAT" and length > 0
            finished = name == b"IEND"
    return None if pixels else "it holds no pixels (no chunk IDAT)"


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Names and lengths of the chunks before the pixels; the file stands at the data of each."""
    position = len(SIGNATURE)
    while True:
        file.seek(position)
        header = file.read(8)
        if len(header) < 8:
            return
        length, name = struct.unpack(">I4s", header)
        if name == b"IDAT":
            return
        yield name, length
        position += 12 + length


def _data(file: BinaryIO, length: int, seek: bool = True) -> bytes | None:
    """A chunk's data, None if there is less of it."""
    if seek and length > _LONGEST:
        return None
    data = file.read(length)
    return data if len(data) == length else None

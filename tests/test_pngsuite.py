"""Willem van Schaik's PngSuite: what each file's name says of it, holds for what is read.

Names are a feature and its value, i (interlaced) or n, the color type with a letter for it, and the depth; files that
start with x are corrupt. A part of the suite is in the repository; HATLIB_DATA names a folder with all of it.
"""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

from hatlib.errors import HatlibError
from hatlib.imageio import open_image, read_image, write_image

HERE = Path(__file__).parent / "data" / "pngsuite"
EVERYTHING = Path(os.environ.get("HATLIB_DATA", HERE)) / "pngsuite"
REASONS = {
    "xc1n0g08": "color type 1 does not exist",
    "xc9n2c08": "color type 9 does not exist",
    "xd0n2c08": "no 0 bits per sample",
    "xd3n2c08": "no 3 bits per sample",
    "xd9n2c08": "no 99 bits per sample",
    "xdtn0g01": "no pixels",
    "xhdn0g08": "checksum of the chunk IHDR",
    "xcsn0g01": "checksum of the chunk IDAT",
}


def files(pattern):
    folder = EVERYTHING if EVERYTHING.is_dir() else HERE
    return sorted(folder.glob(pattern))


def expected(name):
    """Mode and bits from the name."""
    mode = {"0": "L", "2": "RGB", "3": "RGB", "4": "LA", "6": "RGBA"}[name[4]]
    if name[0] == "t" and name[:3] != "tp0":  # a transparent color
        mode += "A"
    return mode, 16 if name[6:8] == "16" else 8


@pytest.mark.parametrize("path", files("[!x]*.png"), ids=lambda path: path.stem)
def test_valid_file(path, tmp_path):
    image = read_image(path)
    assert (image.mode, image.bits) == expected(path.stem)
    with PILImage.open(path) as pil:
        assert image.pixels.shape[:2] == (pil.height, pil.width)
        # Pillow has no alpha for transparent colors of gray and of 16 bits, and the upper bytes of 16-bit colors.
        keyed = path.stem[0] == "t" and (image.bits == 16 or image.mode == "LA")
        if path.stem[4] == "0" and image.bits == 16:
            assert np.array_equal(image.pixels[:, :, 0], np.asarray(pil))
        else:
            pil = pil.convert(image.mode[:-1] if keyed else image.mode)
            theirs = np.asarray(pil).reshape(pil.height, pil.width, -1).astype(int)
            ours = image.pixels[:, :, : theirs.shape[2]] >> (8 if image.bits == 16 else 0)
            assert np.abs(ours - theirs).max() == 0
    with open_image(path) as reader:
        middle = reader.header.height // 2
        rows = np.concatenate((reader.rows(0, middle), reader.rows(middle, reader.header.height)))
    assert np.array_equal(rows, image.pixels)
    for suffix in (".png", ".tif"):
        write_image(tmp_path / f"a{suffix}", image)
        again = read_image(tmp_path / f"a{suffix}")
        same = suffix == ".png" or "png-color" not in image.metadata  # TIFF has no place for a gamma
        assert again.pixels.shape == image.pixels.shape and again.bits == image.bits
        assert not same or np.array_equal(again.pixels, image.pixels)
        assert not same or again.metadata.get("png-color") == image.metadata.get("png-color")


@pytest.mark.parametrize("path", files("x*.png"), ids=lambda path: path.stem)
def test_corrupt_file(path):
    with pytest.raises(
        HatlibError, match=REASONS.get(path.stem, "first bytes are changed|not an image that")
    ) as caught:
        read_image(path)
    assert path.name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.skipif(not EVERYTHING.is_dir(), reason="HATLIB_DATA names no folder with pngsuite")
def test_the_suite_is_complete():
    assert len(files("[!x]*.png")) == 161 and len(files("x*.png")) == 14

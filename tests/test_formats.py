"""Pillow's own test files (HATLIB_DATA names a folder with `formats`): read right, or refused in words."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage
from PIL import ImageOps

from hatlib.errors import HatlibError
from hatlib.imageio import IMAGE_SUFFIXES, check_output, open_image, read_image, write_image

FOLDER = Path(os.environ.get("HATLIB_DATA", "nowhere")) / "formats"
FILES = sorted(p for p in FOLDER.glob("*") if p.suffix in IMAGE_SUFFIXES)
BROKEN = (
    "crash",
    "truncated_jpeg",
    "oom-",
    "seek_too_large",
    "libtiff_segfault",
    "l2rgb_read",
    "negative_size",
    "ultrahdr",  # its end is missing
)
UNSUPPORTED = (
    "10ct_32bit_128.tiff",
    "12bit.cropped.tif",
    "16_bit_binary_pgm.tiff",
    "16bit.s.tif",
    "8bit.s.tif",
    "compression.tif",
    "g4-multi.tiff",
    "hopper.Lab.tif",
    "hopper_lzma.tif",
    "lab-green.tif",
    "lab-red.tif",
    "lab.tif",
    "multipage-mmap.tiff",
    "multipage.tiff",
    "multipage_multiple_frame_loop.tiff",
    "multipage_out_of_order.tiff",
    "pil_sample_cmyk.jpg",
    "separate_planar_extra_samples.tiff",
    "tiff_strip_cmyk_16l_jpeg.tif",
    "tiff_strip_cmyk_jpeg.tif",
    "tiff_tiled_cmyk_jpeg.tif",
    "tiff_tiled_planar_16bit_RGB.tiff",
    "tiff_tiled_planar_16bit_RGBa.tiff",
    "total-pages-zero.tif",
)

pytestmark = pytest.mark.skipif(not FILES, reason="HATLIB_DATA names no folder with formats")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_file(path, tmp_path):
    if path.name.startswith(BROKEN) or path.name in UNSUPPORTED:
        with pytest.raises(HatlibError) as caught:
            read_image(path)
        assert path.name in str(caught.value) and "\n" not in str(caught.value)
        return
    image = read_image(path)
    with PILImage.open(path) as pil:
        # Pillow's own libtiff knows no WebP.
        upright = pil if path.name == "hopper_webp.tif" else ImageOps.exif_transpose(pil)
        assert image.pixels.shape[:2] == (upright.height, upright.width)
        if (
            image.bits == 8
            and pil.format in ("TIFF", "BMP", "PPM")
            and pil.mode == image.mode
            and "webp" not in path.name
        ):
            difference = np.abs(image.pixels.astype(int) - np.asarray(upright).reshape(image.pixels.shape))
            # JPEG within TIFF are decoded by two libraries, a few levels apart.
            assert np.percentile(difference, 99) <= 4
        profile = pil.info.get("icc_profile")
    assert not profile or image.metadata["icc-profile-data"] == profile
    with open_image(path) as reader:
        height = reader.header.height
        rows = np.concatenate([reader.rows(top, min(top + 100, height)) for top in range(0, height, 100)])
    assert np.array_equal(rows, image.pixels)
    for suffix in (".png", ".tif", ".jpg", ".webp"):
        try:
            check_output(tmp_path / f"a{suffix}", image.header)
        except HatlibError:
            assert suffix in (".jpg", ".webp") and (image.has_alpha or image.bits == 16)
            continue
        write_image(tmp_path / f"a{suffix}", image)
        again = read_image(tmp_path / f"a{suffix}")
        assert again.pixels.shape[:2] == image.pixels.shape[:2]
        assert suffix in (".jpg", ".webp") or np.array_equal(again.pixels, image.pixels)

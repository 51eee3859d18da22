"""Row by row: equal to all at once, within bounded memory, whole or not there."""

import os
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from test_inference import Enlarge

from hatlib.errors import HatlibError
from hatlib.imageio import Header, Image, image_writer, open_image, read_image, write_image
from hatlib.inference import Upscaler


def picture(channels, dtype, height=150, width=90):
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, (height, width, channels), dtype)


def copy(source, target, step=37):
    with open_image(source) as reader, image_writer(target, reader.header) as writer:
        for top in range(0, reader.header.height, step):
            writer.write(reader.rows(top, min(top + step, reader.header.height)))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_rows_in_and_out(tmp_path, channels, dtype, suffix):
    image = Image(picture(channels, dtype), {"xmp-data": b"<x/>"}, (11.8, 11.8))
    write_image(tmp_path / f"a{suffix}", image)
    copy(tmp_path / f"a{suffix}", tmp_path / f"b{suffix}")
    back = read_image(tmp_path / f"b{suffix}")
    assert np.array_equal(back.pixels, image.pixels) and back.mode == image.mode
    assert back.metadata["xmp-data"] == b"<x/>" and back.resolution == pytest.approx((11.8, 11.8), abs=0.1)
    assert len(os.listdir(tmp_path)) == 2


def test_streamed_file_is_the_same_file(tmp_path):
    """Both ways of writing give the same bytes, so that a size near the threshold makes no difference."""
    write_image(tmp_path / "a.jpg", Image(picture(3, np.uint8)))
    copy(tmp_path / "a.jpg", tmp_path / "b.png")
    write_image(tmp_path / "c.png", read_image(tmp_path / "a.jpg"))
    assert (tmp_path / "b.png").read_bytes() == (tmp_path / "c.png").read_bytes()


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_interrupted_writer_leaves_nothing(tmp_path, error):
    header = Image(picture(3, np.uint8)).header
    with pytest.raises(error), image_writer(tmp_path / "a.png", header) as writer:
        writer.write(picture(3, np.uint8, 10))
        raise error
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("rows", [(149, 90, 3), (10, 90, 4), (10, 91, 3)])
def test_wrong_rows_are_refused(tmp_path, rows):
    with (
        pytest.raises(HatlibError, match="rows"),
        image_writer(tmp_path / "a.png", Image(picture(3, np.uint8)).header) as writer,
    ):
        writer.write(np.zeros(rows, np.uint8))
    assert os.listdir(tmp_path) == []


def test_formats_that_need_the_whole_image(tmp_path):
    with pytest.raises(HatlibError, match="row by row"), image_writer(tmp_path / "a.webp", Header(9, 9, 3, np.uint8)):
        pass


def test_damage_further_down_is_found(tmp_path):
    write_image(tmp_path / "a.png", Image(picture(3, np.uint8, 400, 400)))
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(HatlibError, match=r"a\.png.*truncated or corrupt"):
        copy(tmp_path / "a.png", tmp_path / "b.png")
    assert os.listdir(tmp_path) == ["a.png"]


@pytest.mark.parametrize("channels, dtype", [(1, np.uint8), (3, np.uint8), (3, np.uint16), (4, np.uint8)])
@pytest.mark.parametrize("tile, batch", [(32, 1), (48, 3), (None, 1)])
def test_strips_equal_the_whole_call(channels, dtype, tile, batch):
    pixels = picture(channels, dtype)
    if channels == 4:
        pixels[..., 3] |= 1  # nothing fully transparent: what is hidden may differ
    asked = []

    def read(start, stop):
        asked.append((start, stop))
        return pixels[start:stop]

    upscaler = Upscaler(Enlarge(2, "bicubic"), tile=tile, batch=batch)
    strips = []
    for strip in upscaler.strips(read, *pixels.shape[:2]):
        assert not torch.is_inference_mode_enabled()
        strips.append(strip)
    difference = np.concatenate(strips).astype(int) - upscaler(pixels)
    assert np.abs(difference).max() <= (1 if channels == 4 else 0)
    assert asked[0][0] == 0 and asked[-1][1] == 150
    assert all(before[1] == after[0] for before, after in pairwise(asked))
    assert tile is None or len(strips) > 2


LARGE = """
import resource, sys
import numpy as np, torch
from torch import nn
from torch.nn import functional as F
from hatlib.imageio import Header, image_writer, open_image
from hatlib.inference import Upscaler

class Bicubic(nn.Module):
    upscale = 2
    def forward(self, x):
        return F.interpolate(x, scale_factor=2, mode="bicubic")

side, source, target = int(sys.argv[1]), sys.argv[2], sys.argv[3]
with image_writer(source, Header(side, side, 3, np.dtype(np.uint8))) as writer:
    ramp = np.arange(side)
    for top in range(0, side, 250):
        rows = np.add.outer(ramp[top : top + 250], ramp)[:, :, None] // np.array([3, 5, 7])
        writer.write((rows % 256).astype(np.uint8))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with open_image(source) as reader, image_writer(target, reader.header.enlarged(2)) as writer:
    for strip in Upscaler(Bicubic(), tile=256).strips(reader.rows, side, side):
        writer.write(strip)
print(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def run_large(tmp_path, side):
    command = [sys.executable, "-c", LARGE, str(side), str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    before, peak = (int(kib) * 1024 for kib in done.stdout.split())
    with open_image(tmp_path / "b.png") as reader:
        assert (reader.header.height, reader.header.width) == (2 * side, 2 * side)
        rows = reader.rows(0, 64)
    with open_image(tmp_path / "a.png") as reader:
        small = torch.from_numpy(reader.rows(0, 40).astype(np.float32) / 255).permute(2, 0, 1)[None]
    with torch.inference_mode():
        expected = torch.nn.functional.interpolate(small, scale_factor=2, mode="bicubic")[0, :, :64].clamp(0, 1)
    assert np.abs(rows - (expected * 255).round().permute(1, 2, 0).numpy()).max() <= 1
    return before, peak


def test_memory_does_not_grow_with_the_image(tmp_path):
    """A result that in float32 would be of 300 MB, and of twice that with what is needed to make it."""
    before, peak = run_large(tmp_path, 2500)
    assert peak - before < 300e6


@pytest.mark.slow
def test_16000_within_2_gib(tmp_path):
    assert run_large(tmp_path, 8000)[1] < 2 * 2**30


def test_large_tiff_is_bigtiff(tmp_path):
    """More than 2 GiB of pixels need 64-bit offsets; the header decides, before any pixel."""
    header = Header(30_000, 30_000, 3, np.dtype(np.uint8))
    with pytest.raises(KeyboardInterrupt), image_writer(tmp_path / "a.tif", header) as writer:
        writer.write(np.zeros((600, 30_000, 3), np.uint8))
        part = next(path for path in tmp_path.iterdir())
        assert part.read_bytes()[:4] in (b"II+\0", b"MM\0+")
        raise KeyboardInterrupt
    small = replace(header, height=10, width=10)
    with image_writer(tmp_path / "a.tif", small) as writer:
        writer.write(np.zeros((10, 10, 3), np.uint8))
    assert (tmp_path / "a.tif").read_bytes()[:4] in (b"II*\0", b"MM\0*")

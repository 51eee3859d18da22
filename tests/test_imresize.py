"""MATLAB's imresize: against an independent double loop, and against MATLAB's own files where they are at hand."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hatlib.data import imresize
from hatlib.errors import HatlibError


def naive_imresize(image, scale, padding="symmetric", size=None):
    """Pixel by pixel, with Python numbers: one row of sums per output pixel, rows before columns (equal scales)."""

    def kernel(t):
        t = abs(t)
        if t <= 1:
            return 1.5 * t**3 - 2.5 * t**2 + 1
        return -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2 if t <= 2 else 0.0

    def source(i, n):
        if padding == "replicate":
            return min(max(i, 0), n - 1)
        while not 0 <= i < n:
            i = -1 - i if i < 0 else 2 * n - 1 - i
        return i

    def resize_line(line, scale, n_out):
        n, shrink, result = len(line), min(scale, 1.0), []
        for k in range(n_out):
            center = (k + 0.5) / scale - 0.5
            reach = math.ceil(2 / shrink) + 2
            near = range(math.floor(center) - reach, math.floor(center) + reach + 1)
            weights = [kernel(shrink * (center - i)) for i in near]
            value = sum(w * float(line[source(i, n)]) for w, i in zip(weights, near, strict=True)) / sum(weights)
            if image.dtype == np.uint8:
                # Sums of decimal weights miss exact halves by a few ulp; those are halves.
                value = min(max(math.floor(round(value, 9) + 0.5), 0), 255)
            result.append(value)
        return result

    h, w = image.shape[1:]
    scale_h, scale_w = (scale, scale) if size is None else (size[0] / h, size[1] / w)
    out_h, out_w = (math.ceil(scale * h), math.ceil(scale * w)) if size is None else size

    def rows(im):
        return np.stack([np.stack([resize_line(c[:, j], scale_h, out_h) for j in range(c.shape[1])], 1) for c in im])

    def columns(im):
        return np.stack([np.stack([resize_line(row, scale_w, out_w) for row in c]) for c in im])

    return columns(rows(image)) if scale_h <= scale_w else rows(columns(image))


def noise(h, w, channels=1, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (channels, h, w), dtype=np.uint8)


def gradient(h, w):
    y, x = np.mgrid[0:h, 0:w]
    return ((7 * x + 11 * y) % 256).astype(np.uint8)[None]


IMAGES = {"noise": noise(17, 23), "gradient": gradient(19, 14), "checker": np.indices((13, 16)).sum(0)[None] % 2 * 255}
IMAGES = {name: image.astype(np.uint8) for name, image in IMAGES.items()}


@pytest.mark.parametrize("padding", ["symmetric", "replicate"])
@pytest.mark.parametrize("scale", [1 / 2, 1 / 3, 1 / 4, 1 / 8, 2 / 3, 0.7, 1.0, 1.3, 1.5, 2, 3, 4])
@pytest.mark.parametrize("name", IMAGES)
def test_uint8_equals_double_loop(name, scale, padding):
    image = IMAGES[name]
    ours = imresize(torch.from_numpy(image), scale, padding=padding)
    reference = naive_imresize(image, scale, padding)
    assert ours.dtype == torch.uint8
    assert ours.shape == reference.shape
    difference = np.abs(ours.numpy().astype(int) - reference)
    if scale in (
        2 / 3,
        0.7,
        1.3,
        1.5,
    ):  # an exact half, frequent in the gradient, may fall either way by the last bit of its sum
        assert difference.max() <= 1
        assert (difference > 0).mean() < 0.05
    else:
        assert difference.max() == 0


@pytest.mark.parametrize("dtype,tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 1e-1)])
@pytest.mark.parametrize("scale", [1 / 3, 0.25, 2 / 3, 2.5, 3])
def test_float_equals_double_loop(scale, dtype, tolerance):
    image = np.random.default_rng(1).standard_normal((2, 11, 15))
    ours = imresize(torch.from_numpy(image).to(dtype), scale)
    assert ours.dtype == dtype
    np.testing.assert_allclose(ours.double().numpy(), naive_imresize(image, scale), atol=tolerance)


@pytest.mark.parametrize("size", [(5, 30), (30, 5), (7, 9), (1, 1), (17, 40)])
def test_size_and_order_of_dimensions(size):
    image = noise(17, 23, seed=2)
    reference = naive_imresize(image, None, size=size)
    difference = np.abs(imresize(torch.from_numpy(image), size=size).numpy().astype(int) - reference)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01


@pytest.mark.parametrize("h,w", [(1, 1), (1, 7), (2, 3), (5, 1)])
@pytest.mark.parametrize("padding", ["symmetric", "replicate"])
def test_images_smaller_than_the_kernel(h, w, padding):
    image = noise(h, w, channels=3, seed=3)
    for scale in (1 / 8, 1 / 4, 2):
        ours = imresize(torch.from_numpy(image), scale, padding=padding)
        np.testing.assert_array_equal(ours.numpy(), naive_imresize(image, scale, padding))


def test_intermediate_is_rounded():
    """Keeping floats between the passes, as other ports do, changes a good part of the pixels."""
    image = torch.from_numpy(noise(64, 64, seed=4))
    in_float = imresize(image.double(), 0.25).add(0.5).floor().clamp(0, 255).byte()
    assert (imresize(image, 0.25) != in_float).float().mean() > 0.05


def test_half_rounds_up():
    # A constant 4x2 block pattern whose mean is exactly 127.5 in the interior of a shrunk image.
    image = torch.tensor([127, 128], dtype=torch.uint8).repeat(1, 32, 32)
    assert imresize(image, 0.5)[0, 8, 8:24].unique().tolist() == [128]


def test_batch_equals_single_images():
    image = torch.from_numpy(noise(20, 14, channels=6, seed=5))
    batch = image.view(2, 3, 20, 14)
    assert torch.equal(imresize(batch, 1 / 3).flatten(0, 1), imresize(image, 1 / 3))


def test_constant_stays_constant_and_factors_pair():
    image = torch.full((3, 9, 12), 201, dtype=torch.uint8)
    assert imresize(image, (2, 1 / 3)).unique().tolist() == [201]
    assert imresize(image, (2, 1 / 3)).shape == (3, 18, 4)


def test_gradient():
    x = torch.rand(1, 2, 6, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: imresize(t, 0.5), x)
    assert torch.autograd.gradcheck(lambda t: imresize(t, size=(9, 4), padding="replicate"), x)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_equals_cpu():
    image = torch.from_numpy(noise(61, 83, channels=3, seed=6))
    for scale in (1 / 3, 0.25, 2, 1.7):
        assert torch.equal(imresize(image.cuda(), scale).cpu(), imresize(image, scale))


@pytest.mark.parametrize(
    "arguments,message",
    [
        ((torch.zeros(3, 8, 8),), "either scale= or size="),
        ((torch.zeros(3, 8, 8), 2, (4, 4)), "not both"),
        ((torch.zeros(3, 8, 8), 0), "positive"),
        ((torch.zeros(3, 8, 8), math.nan), "positive"),
        ((torch.zeros(3, 8, 8), (1, 2, 3)), "positive"),
        ((torch.zeros(3, 8, 8), None, (4, 0)), "two positive"),
        ((torch.zeros(3, 8, 8), None, 4), "two positive"),
        ((torch.zeros(3, 8, 8), 2, None, "reflect"), "padding"),
        ((torch.zeros(8, 8), 2), "shape"),
        ((torch.zeros(3, 0, 8), 2), "shape"),
        ((torch.zeros(3, 8, 8, dtype=torch.int32), 2), "uint8"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(HatlibError, match=message):
        imresize(*arguments)


@pytest.mark.skipif("HATLIB_DATA" not in os.environ, reason="HATLIB_DATA names no folder with Set5 and Set14")
@pytest.mark.parametrize("scale,padding", [(2, "symmetric"), (3, "symmetric"), (4, "symmetric"), (8, "replicate")])
@pytest.mark.parametrize("name,count", [("Set5", 5), ("Set14", 14)])
def test_matlab_files(name, count, scale, padding):
    root = Path(os.environ["HATLIB_DATA"]) / name
    files = sorted((root / "HR").glob("*.png"))
    assert len(files) == count
    for file in files:
        hr = np.asarray(Image.open(file).convert("RGB"))
        hr = hr[: hr.shape[0] // scale * scale, : hr.shape[1] // scale * scale]
        theirs = np.asarray(Image.open(root / f"LR_bicubic/X{scale}/{file.stem}x{scale}.png").convert("RGB"))
        ours = imresize(torch.from_numpy(hr.copy()).permute(2, 0, 1), 1 / scale, padding=padding)
        np.testing.assert_array_equal(ours.permute(1, 2, 0).numpy(), theirs, err_msg=file.name)

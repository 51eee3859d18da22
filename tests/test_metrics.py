"""PSNR and SSIM against plain numpy loops, and on the benchmark images where they are at hand."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hatlib.data import imresize
from hatlib.errors import HatlibError
from hatlib.metrics import psnr, rgb_to_y, ssim


def images(*shape, seed=0, noise=0.1):
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    preds = target / 255 + noise * torch.randn(shape, generator=generator)
    return preds, target


def reference_planes(preds, target, border, y_channel):
    """The protocol step by step on one image: two arrays (C, h, w), float64 in 8-bit units."""
    planes = []
    for x in (preds.double().numpy(), target.double().numpy() / 255):
        x = np.round(np.clip(x, 0, 1) * 255)
        x = x[:, border : x.shape[1] - border, border : x.shape[2] - border]
        if y_channel and len(x) == 3:
            x = 16 + (65.481 * x[:1] + 128.553 * x[1:2] + 24.966 * x[2:]) / 255
        planes.append(x)
    return planes


def reference_ssim(a, b):
    window = np.array([[math.exp(-((i - 5) ** 2 + (j - 5) ** 2) / 4.5) for j in range(11)] for i in range(11)])
    window /= window.sum()
    values = []
    for i in range(a.shape[0] - 10):
        for j in range(a.shape[1] - 10):
            p, t = a[i : i + 11, j : j + 11], b[i : i + 11, j : j + 11]
            mean_p, mean_t = (window * p).sum(), (window * t).sum()
            var_p, var_t = (window * (p - mean_p) ** 2).sum(), (window * (t - mean_t) ** 2).sum()
            covariance = (window * (p - mean_p) * (t - mean_t)).sum()
            luminance = (2 * mean_p * mean_t + 6.5025) / (mean_p**2 + mean_t**2 + 6.5025)
            values.append(luminance * (2 * covariance + 58.5225) / (var_p + var_t + 58.5225))
    return np.mean(values)


CASES = pytest.mark.parametrize(
    "channels,border,y_channel", [(3, 0, True), (3, 4, True), (3, 2, False), (1, 3, True), (1, 0, False)]
)


@CASES
def test_psnr_equals_formula(channels, border, y_channel):
    preds, target = images(2, channels, 21, 26)
    values = psnr(preds, target, border=border, y_channel=y_channel)
    assert values.shape == (2,)
    for value, p, t in zip(values, preds, target, strict=True):
        a, b = reference_planes(p, t, border, y_channel)
        assert value.item() == pytest.approx(10 * math.log10(255**2 / np.mean((a - b) ** 2)), abs=1e-9)


@CASES
def test_ssim_equals_formula(channels, border, y_channel):
    preds, target = images(2, channels, 21, 26, seed=1)
    values = ssim(preds, target, border=border, y_channel=y_channel)
    assert values.shape == (2,)
    for value, p, t in zip(values, preds, target, strict=True):
        planes = reference_planes(p, t, border, y_channel)
        expected = np.mean([reference_ssim(a, b) for a, b in zip(*planes, strict=True)])
        assert value.item() == pytest.approx(expected, abs=1e-9)


def test_equal_images():
    _, target = images(1, 3, 12, 12)
    assert psnr(target, target).item() == math.inf
    assert ssim(target, target).item() == pytest.approx(1, abs=1e-12)
    assert torch.equal(psnr(target / 255, target), psnr(target, target))


def test_quantize():
    target = torch.full((1, 1, 8, 8), 100, dtype=torch.uint8)
    preds = torch.full((1, 1, 8, 8), 100.4 / 255)
    assert psnr(preds, target).item() == math.inf
    assert psnr(preds, target, quantize=False).item() == pytest.approx(20 * math.log10(255 / 0.4), abs=1e-3)
    assert psnr(torch.full_like(preds, 1.7), torch.full_like(target, 255)).item() == math.inf


def test_luma_range():
    black_white = torch.stack([torch.zeros(3, 1, 1), torch.ones(3, 1, 1)])
    assert rgb_to_y(black_white).flatten().tolist() == pytest.approx([16, 235])


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_bad_input(metric):
    x = torch.zeros(1, 3, 16, 16)
    with pytest.raises(HatlibError, match="equal shape"):
        metric(x, x[..., :-1])
    with pytest.raises(HatlibError, match="equal shape"):
        metric(x[0], x[0])
    with pytest.raises(HatlibError, match="leaves nothing"):
        metric(x, x, border=8)


def test_ssim_needs_a_window():
    x = torch.zeros(1, 3, 16, 16)
    with pytest.raises(HatlibError, match="11x11"):
        ssim(x, x, border=3)


@pytest.mark.skipif("HATLIB_DATA" not in os.environ, reason="HATLIB_DATA names no folder with Set5 and Set14")
@pytest.mark.parametrize(
    "name,scale,expected",
    [("Set5", 2, 33.673), ("Set5", 3, 30.403), ("Set5", 4, 28.429)]
    + [("Set14", 2, 30.325), ("Set14", 3, 27.631), ("Set14", 4, 26.088)],
)
def test_bicubic_on_benchmarks(name, scale, expected):
    values = []
    for file in sorted((Path(os.environ["HATLIB_DATA"]) / name / "HR").glob("*.png")):
        hr = torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1)[None]
        hr = hr[..., : hr.shape[-2] // scale * scale, : hr.shape[-1] // scale * scale]
        values.append(psnr(imresize(imresize(hr, 1 / scale), scale), hr, border=scale))
    assert torch.cat(values).mean().item() == pytest.approx(expected, abs=0.0015)

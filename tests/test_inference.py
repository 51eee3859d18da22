"""Tiling is exact, every kind of image comes back as its kind, and transparency has no fringe."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from torch import nn
from torch.nn import functional as F

from hatlib.errors import HatlibError
from hatlib.inference import Upscaler, blend_weights, tile_spans, tiled
from hatlib.inference.alpha import clamp_to_neighbors, fill_transparent


class Enlarge(nn.Module):
    """Interpolation as a model: known results, a small receptive field, and a weight that gives device and type."""

    def __init__(self, upscale=2, mode="nearest", in_chans=3, window_size=1):
        super().__init__()
        self.upscale, self.mode, self.in_chans, self.window_size = upscale, mode, in_chans, window_size
        self.gain = nn.Parameter(torch.ones(()))
        self.dropout = nn.Dropout(0.5)
        self.sizes = []

    def forward(self, x):
        self.sizes.append(tuple(x.shape[2:]))
        assert x.shape[1] == self.in_chans and not torch.is_grad_enabled()
        return F.interpolate(self.dropout(x * self.gain), scale_factor=self.upscale, mode=self.mode)


def noise(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("multiple", [1, 7, 16])
@pytest.mark.parametrize("overlap", [0, 1, 16, 30])
@pytest.mark.parametrize("length", [1, 15, 63, 64, 65, 100, 161, 1000])
def test_spans_cover_and_overlap(length, overlap, multiple):
    tile = 80
    spans = tile_spans(length, tile, overlap, multiple)
    assert spans[0].start == 0 and spans[-1].stop == length
    assert all(0 < stop - start <= tile for start, stop in spans)
    assert all(start % multiple == 0 for start, _ in spans)
    for before, after in pairwise(spans):
        assert before.start < after.start and before.stop - after.start >= overlap
    weights = blend_weights(spans, 3)
    total = torch.zeros(3 * length, dtype=torch.float64)
    for (start, stop), weight in zip(spans, weights, strict=True):
        assert weight.shape == (3 * (stop - start),) and weight.min() > 0
        total[3 * start : 3 * stop] += weight
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-12)


def test_one_tile_is_enough_when_it_is():
    assert tile_spans(64, None) == [(0, 64)]
    assert tile_spans(64, 64, 16) == [(0, 64)]
    assert tile_spans(65, 64, 16) == [(0, 64), (1, 65)]
    assert len(tile_spans(96 + 1, 64, 32, 16)) == 3


@pytest.mark.parametrize("tile, overlap, multiple", [(16, 16, 1), (15, 0, 16), (40, 20, 16)])
def test_impossible_tiles_are_refused(tile, overlap, multiple):
    with pytest.raises(HatlibError, match="at least"):
        tile_spans(100, tile, overlap, multiple)
    with pytest.raises(HatlibError, match="at least"):
        Upscaler(Enlarge(window_size=multiple), tile=tile, overlap=overlap)


@pytest.mark.parametrize("mode, margin", [("nearest", 0), ("bicubic", 4)])
@pytest.mark.parametrize("size", [(40, 61), (33, 20), (1, 90)])
@torch.inference_mode()
def test_tiled_equals_whole_away_from_what_tiles_can_not_see(mode, margin, size):
    """Nearest sees one pixel: equal everywhere. Bicubic's error sits where a tile's edge has weight, and is small."""
    model = Enlarge(2, mode).eval()
    x = noise(2, 3, *size).double()
    whole, parts = model(x), tiled(model, x, scale=2, tile=24, overlap=8)
    error = (whole - parts).abs()
    if margin == 0:
        assert error.max() < 1e-12
    else:
        assert error.max() < 0.1 and error.mean() < 2e-3


def test_windows_lie_as_in_the_whole_image():
    class Windows(Enlarge):
        """The mean of each 8 x 8 window: any tile that starts elsewhere gives another result."""

        def forward(self, x):
            super().forward(x)
            mean = F.avg_pool2d(x, 8, ceil_mode=True, count_include_pad=False)
            return F.interpolate(mean, scale_factor=8)[:, :, : x.shape[2], : x.shape[3]]

    model = Windows(1, window_size=8)
    x = noise(1, 3, 50, 77)
    whole, parts = Upscaler(model)(x), Upscaler(model, tile=30, overlap=8)(x)
    assert len(model.sizes) > 4
    torch.testing.assert_close(parts, whole)


def test_tile_sizes_progress_and_errors():
    model, seen = Enlarge(), []
    Upscaler(model, tile=32, overlap=8)(noise(1, 3, 70, 50), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i + 1, 6) for i in range(6)]
    assert max(max(size) for size in model.sizes) <= 32

    class Broken(Enlarge):
        def forward(self, x):
            if len(self.sizes) == 3:
                raise RuntimeError("tile 4")
            return super().forward(x)

    with pytest.raises(RuntimeError, match="tile 4"):
        Upscaler(Broken(), tile=32, overlap=8)(noise(1, 3, 70, 50))

    class Short(Enlarge):
        def forward(self, x):
            return super().forward(x)[:, :, 1:]

    with pytest.raises(HatlibError, match="instead of x2"):
        Upscaler(Short())(noise(1, 3, 8, 8))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64])
def test_arrays_come_back_as_they_were(channels, dtype):
    x = noise(11, 9, channels).double().numpy()
    if channels in (2, 4):
        x[..., -1] = x[..., -1].round()
    image = x.astype(dtype) if dtype in (np.float32, np.float64) else (x * np.iinfo(dtype).max).round().astype(dtype)
    y = Upscaler(Enlarge(3), tile=None)(image)
    assert y.dtype == dtype and y.shape == (33, 27, channels)
    expected = image.repeat(3, 0).repeat(3, 1)
    shown = expected[..., -1:] > 0 if channels in (2, 4) else np.ones_like(expected[..., :1], bool)
    colors = channels - (channels in (2, 4))
    difference = np.abs(y.astype(float) - expected)
    tolerance = 1e-6 if dtype in (np.float32, np.float64) else 0
    assert (difference[..., :colors] * shown).max() <= tolerance and difference[..., colors:].sum() <= tolerance


def test_two_dimensional_array_and_big_endian():
    image = (noise(5, 6).numpy() * 65535).astype(">u2")
    y = Upscaler(Enlarge())(image)
    assert y.shape == (10, 12) and np.array_equal(y, image.repeat(2, 0).repeat(2, 1))


@pytest.mark.parametrize(
    "mode, returned", [("L", "L"), ("LA", "LA"), ("RGB", "RGB"), ("RGBA", "RGBA"), ("1", "L"), ("P", "RGB")]
)
def test_pil_images(mode, returned):
    image = PILImage.fromarray((noise(8, 10, 3).numpy() * 255).astype(np.uint8)).convert(mode)
    image.info["icc_profile"] = b"profile"
    y = Upscaler(Enlarge())(image)
    assert y.mode == returned and y.size == (20, 16) and y.info["icc_profile"] == b"profile"
    assert np.array_equal(np.asarray(y), np.asarray(image.convert(returned)).repeat(2, 0).repeat(2, 1))


def test_pil_16_bit():
    image = PILImage.fromarray((noise(8, 10).numpy() * 65535).astype(np.uint16))
    y = Upscaler(Enlarge())(image)
    assert y.mode == "I;16" and np.array_equal(np.asarray(y), np.asarray(image).repeat(2, 0).repeat(2, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_tensors_keep_type_and_are_clamped(dtype):
    x = (noise(2, 3, 6, 7) * 3 - 1).to(dtype)
    y = Upscaler(Enlarge())(x)
    assert y.dtype == dtype and y.shape == (2, 3, 12, 14)
    assert y.min() >= 0 and y.max() <= 1 and not y.requires_grad
    torch.testing.assert_close(y[:, :, ::2, ::2], x.clamp(0, 1))


def test_gray_through_color_is_the_mean():
    class Tint(Enlarge):
        def forward(self, x):
            return super().forward(x) + torch.tensor([0.1, -0.05, 0.04]).view(3, 1, 1)

    x = torch.full((1, 1, 4, 4), 0.5)
    torch.testing.assert_close(Upscaler(Tint())(x), torch.full((1, 1, 8, 8), 0.53))


def test_other_channel_counts():
    assert Upscaler(Enlarge(in_chans=1))(noise(1, 1, 4, 4)).shape == (1, 1, 8, 8)
    assert Upscaler(Enlarge(in_chans=1))(noise(1, 2, 4, 4)).shape == (1, 2, 8, 8)
    assert Upscaler(Enlarge(in_chans=4))(noise(1, 4, 4, 4)).shape == (1, 4, 8, 8)
    for in_chans, channels in [(1, 3), (1, 4), (3, 5), (4, 3)]:
        with pytest.raises(HatlibError, match=f"takes {in_chans} channels, the image has {channels}"):
            Upscaler(Enlarge(in_chans=in_chans))(noise(1, channels, 4, 4))


def test_modes_of_the_model_are_restored():
    model = Enlarge()
    model.train()
    model.dropout.eval()
    x = noise(1, 3, 4, 4)
    torch.testing.assert_close(Upscaler(model)(x)[:, :, ::2, ::2], x)
    assert model.training and not model.dropout.training
    with pytest.raises(HatlibError):
        Upscaler(model)(noise(1, 5, 4, 4))
    assert model.training


@pytest.mark.parametrize(
    "image",
    [None, "a.png", torch.zeros(3, 4, 4), torch.zeros(1, 3, 4, 4, dtype=torch.uint8), torch.zeros(1, 3, 0, 4)]
    + [np.zeros((2, 3, 4, 4)), np.zeros((4, 4, 3), np.int32), PILImage.new("CMYK", (4, 4)), PILImage.new("F", (4, 4))],
)
def test_other_images_are_refused(image):
    with pytest.raises(HatlibError):
        Upscaler(Enlarge())(image)


def test_other_models_and_devices_are_refused():
    with pytest.raises(HatlibError, match="upscale"):
        Upscaler(nn.Conv2d(3, 3, 1))
    for device in ("cuda:99", "nonsense"):
        with pytest.raises(HatlibError, match=device):
            Upscaler(Enlarge(), device=device)
    for wrong in ({"tile": 0}, {"tile": -5}, {"tile": 64, "overlap": -1}):
        with pytest.raises(HatlibError):
            Upscaler(Enlarge(), **wrong)


def disc(size=40, radius=13.3):
    """A gray-green disc with soft edges on full transparency, whose hidden color is magenta."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    center = (size - 1) / 2
    alpha = (radius + 0.5 - ((y - center) ** 2 + (x - center) ** 2).sqrt()).clamp(0, 1)[None, None]
    inside = torch.tensor([0.3, 0.6, 0.4]).view(1, 3, 1, 1).expand(1, 3, size, size)
    hidden = torch.tensor([1.0, 0.0, 1.0]).view(1, 3, 1, 1)
    return torch.cat((torch.where(alpha > 0, inside, hidden), alpha), 1)


@pytest.mark.parametrize("tile", [None, 24])
def test_no_fringe_around_a_disc(tile):
    image = disc()
    y = Upscaler(Enlarge(4, "bicubic"), tile=tile)(image)
    color, alpha = y[:, :3], y[:, 3:]
    shown = (alpha > 0).expand_as(color)
    expected = torch.tensor([0.3, 0.6, 0.4]).view(1, 3, 1, 1).expand_as(color)
    torch.testing.assert_close(color[shown], expected[shown], rtol=0, atol=1e-5)
    assert ((alpha > 0.02) & (alpha < 0.98)).any()
    # Far from the edge alpha is exactly what it was.
    assert (alpha[0, 0, 75:85, 75:85] == 1).all() and (alpha[0, 0, :8] == 0).all()


def test_fill_takes_the_nearest_visible_colors():
    color = torch.zeros(2, 3, 9, 14)
    alpha = torch.zeros(2, 1, 9, 14)
    color[0, 0, :, :3], alpha[0, :, :, :3] = 1.0, 1.0
    color[0, 2, :, 11:], alpha[0, :, :, 11:] = 1.0, 0.5
    filled = fill_transparent(color, alpha)
    assert torch.equal(filled[0][:, alpha[0, 0] > 0], color[0][:, alpha[0, 0] > 0])
    assert (filled[0, 0, :, 3] > 0.9).all() and (filled[0, 2, :, 10] > 0.9).all()
    assert filled[0, 1].abs().max() == 0 and filled[1].abs().max() == 0
    torch.testing.assert_close(filled[0].sum(0), torch.ones(9, 14))
    nothing = torch.zeros(1, 1, 9, 14)
    assert fill_transparent(color[:1], nothing) is not None and torch.equal(
        fill_transparent(color[:1], nothing), color[:1]
    )


def test_alpha_is_bounded_by_its_neighborhood():
    low = torch.zeros(1, 1, 8, 8)
    low[..., 4:] = 1
    bounded = clamp_to_neighbors(noise(1, 1, 16, 16) * 1.4 - 0.2, low, 2)
    assert (bounded[..., :6] == 0).all() and (bounded[..., 10:] == 1).all()
    assert ((bounded[..., 6:10] > 0) & (bounded[..., 6:10] < 1)).any()

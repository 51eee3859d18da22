"""Feature maps after each group, and how much of the window grid shows in them."""

import pytest
import torch
from conftest import randomize, tiny_overrides
from torch import nn

import hatlib
from hatlib import HatlibError
from hatlib.analysis import blocking_ratio, draw_features, feature_maps
from hatlib.analysis.figure import features_figure
from hatlib.imageio import read_image


def blocks(side, offset, height=48, width=64, step=2.0):
    """A slope, and squares of different brightness whose borders lie `offset` pixels from the grid."""
    generator = torch.Generator().manual_seed(0)
    rows, columns = (torch.div(torch.arange(n) + side - offset, side, rounding_mode="floor") for n in (height, width))
    values = step * torch.rand(rows.max() + 1, columns.max() + 1, generator=generator)
    slope = 0.1 * (torch.arange(height)[:, None] + torch.arange(width))
    return (slope + values[rows][:, columns])[None]


def test_ratio_by_hand():
    """One row of differences: 1 inside of windows of four, 3 across their borders."""
    steps = torch.tensor([1.0, 1.0, 1.0, 3.0] * 3)[:-1]
    line = torch.cat((torch.zeros(1), steps.cumsum(0)))
    x = line.expand(12, 12) + torch.zeros(2, 5, 12, 12)
    # Down the columns nothing changes, which counts for both and does not alter the ratio.
    blocking = blocking_ratio(x, 4)
    assert blocking.ratio == pytest.approx(3)
    both = blocking_ratio(x + line[:, None], 4)
    assert both.ratio == pytest.approx(3) and both.profile == pytest.approx(blocking.profile)
    # Elsewhere: 3 ones across the moved grid; 2 threes and 6 ones inside.
    assert blocking.profile[1:] == pytest.approx((8 / 12,) * 3)
    assert blocking.half == blocking.profile[2] and blocking.control == pytest.approx(8 / 12)


@pytest.mark.parametrize("offset", [0, 4, 3])
def test_the_grid_is_found_where_it_is(offset):
    blocking = blocking_ratio(blocks(8, offset), 8)
    assert max(range(8), key=blocking.profile.__getitem__) == offset
    assert blocking.profile[offset] > 3
    assert all(value < 1 for i, value in enumerate(blocking.profile) if i != offset)


def test_no_grid_no_ratio():
    noise = torch.randn(16, 96, 96, generator=torch.Generator().manual_seed(0))
    assert blocking_ratio(noise, 8).profile == pytest.approx((1,) * 8, abs=0.02)


def test_bad_maps_and_windows():
    with pytest.raises(HatlibError, match="3 or more"):
        blocking_ratio(torch.rand(1, 32, 32), 2)
    with pytest.raises(HatlibError, match="fewer than two windows of 16x16"):
        blocking_ratio(torch.rand(1, 31, 40), 16)
    with pytest.raises(HatlibError, match="same everywhere"):
        blocking_ratio(torch.ones(1, 32, 32), 8)


def test_maps_after_each_group(tiny):
    image = torch.rand(tiny.in_chans, 13, 17)
    tiny.train()
    maps = feature_maps(tiny, image)
    assert tiny.training and len(maps) == len(tiny.layers)
    with torch.no_grad():
        expected = tiny.eval().forward_intermediates(image[None], intermediates_only=True)
    for one, other in zip(maps, expected, strict=True):
        assert one.shape == (tiny.num_features, 13, 17) and torch.equal(one, other[0])


def test_maps_of_8_bit_images_and_what_has_none(tiny_hat):
    image = torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8)
    for one, other in zip(feature_maps(tiny_hat, image), feature_maps(tiny_hat, image[None] / 255), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(HatlibError, match="forward_intermediates"):
        feature_maps(nn.Identity(), image)
    with pytest.raises(HatlibError, match="floating-point images"):
        feature_maps(tiny_hat, image.long())
    with pytest.raises(HatlibError, match="one image"):
        feature_maps(tiny_hat, torch.rand(2, 3, 16, 16))


def test_figure(tmp_path):
    model = randomize(hatlib.create_model("hat_s_x2", **tiny_overrides("hat_s_x2")))
    maps = feature_maps(model, torch.rand(3, 32, 40))
    features = {"hat": (maps, 8), "again": (maps[:1], 8)}
    axes = features_figure(features).axes
    assert len(axes) == len(maps) + 1
    for panel, (name, i) in zip(axes, [*(("hat", i) for i in range(len(maps))), ("again", 0)], strict=True):
        blocking = blocking_ratio(maps[i], 8)
        ratios = f"ratio {blocking.ratio:.2f} / {blocking.half:.2f} / {blocking.control:.2f}"
        assert panel.get_xlabel() == f"{name}, group {i + 1}\n{ratios}"
        shown = torch.as_tensor(panel.images[0].get_array())
        assert shown.shape == (32, 40, 3) and shown.min() == 0 and shown.max() == 255
        values = maps[i].mean(0)
        brighter = values[:, 1:] > values[:, :-1]
        assert (shown[:, 1:, 0] >= shown[:, :-1, 0])[brighter].all()
    draw_features(tmp_path / "two.png", features)
    assert read_image(tmp_path / "two.png").pixels.std() > 20
    for bad in ({}, {"hat": ([], 8)}):
        with pytest.raises(HatlibError, match="nothing to draw"):
            draw_features(tmp_path / "no.png", bad)
    assert not (tmp_path / "no.png").exists()

"""Figures of image panels: exact pixels, resampling, captions, and files."""

import numpy as np
import pytest
import torch
from matplotlib import pyplot

from hatlib import HatlibError
from hatlib.imageio import read_image
from hatlib.imageio.figure import Panel, panel_figure, panel_size, panel_zoom, write_figure


def noise(height, width, channels=3):
    return torch.randint(0, 256, (channels, height, width), generator=torch.Generator().manual_seed(0)).byte()


def drawn(axes, pixels):
    """The pixels of a panel within its outline."""
    x0, y0, x1, y1 = np.rint(axes.get_window_extent().extents).astype(int)
    height = pixels.shape[0]
    return pixels[height - y1 + 1 : height - y0 - 1, x0 + 1 : x1 - 1]


def rendered(tmp_path, *rows):
    figure = panel_figure(rows)
    write_figure(tmp_path / "figure.png", figure)
    pixels = read_image(tmp_path / "figure.png").pixels
    return figure, [drawn(axes, pixels) for axes in figure.axes]


def enlarged(image, zoom):
    return image.expand(3, -1, -1).permute(1, 2, 0).numpy().repeat(zoom, 0).repeat(zoom, 1)[1:-1, 1:-1]


def test_pixels_are_squares_of_equal_size(tmp_path):
    image, gray = noise(17, 23), noise(9, 31, channels=1)
    view = Panel(image, "", (60, 48), scale=4, view=(8, 12, 40, 32))  # 10 x 8 pixels from (2, 3)
    _, (a, b, c, d) = rendered(
        tmp_path, [Panel(image, "", (69, 51)), Panel(gray, "two\nlines", (217, 63))], [view, Panel(image, "", (23, 17))]
    )
    assert (a == enlarged(image, 3)).all() and (b == enlarged(gray, 7)).all()
    assert (c == enlarged(image[:, 3:11, 2:12], 6)).all() and (d == enlarged(image, 1)).all()


def test_pixels_anywhere_in_large_figures(tmp_path):
    rng = np.random.default_rng(0)
    rows = [[(noise(*rng.integers(5, 40, 2)), int(rng.integers(1, 9))) for _ in range(7)] for _ in range(9)]
    panels = [[Panel(image, "", panel_size(image, zoom)) for image, zoom in row] for row in rows]
    _, shown = rendered(tmp_path, *panels)
    expected = [enlarged(image, zoom) for row in rows for image, zoom in row]
    assert [np.array_equal(a, b) for a, b in zip(shown, expected, strict=True)] == [True] * 63


def test_reduction_averages(tmp_path):
    """A fine checkerboard becomes an even gray, and not a coarser pattern."""
    board = (torch.arange(300)[:, None] + torch.arange(300)).remainder(2).mul(255).byte()[None]
    _, (panel,) = rendered(tmp_path, [Panel(board, "", (110, 110))])
    assert panel.std() < 6 and abs(panel.mean() - 127.5) < 3


def test_columns_captions_and_frames(tmp_path):
    image = noise(10, 12)
    long = "models/a_long_name_of_a_folder/$x_1$/weights.safetensors"
    rows = [
        [Panel(image, "short", (36, 30)), Panel(image, f"{long}\n31.20 dB", (120, 100))],
        [Panel(image, "", (60, 50), scale=2, frame=(4, 6, 8)), Panel(image, "_$a", (24, 20))],
    ]
    figure, _ = rendered(tmp_path, *rows)
    a, b, c, d = (axes.get_window_extent() for axes in figure.axes)
    assert [box.size.round().tolist() for box in (a, b, c, d)] == [[36, 30], [120, 100], [60, 50], [24, 20]]
    assert a.x0 == pytest.approx(c.x0) and b.x0 == pytest.approx(d.x0) and b.x0 > c.x1
    assert a.y1 == pytest.approx(b.y1) and c.y1 == pytest.approx(d.y1) and b.y0 > c.y1
    labels = [axes.xaxis.label for axes in figure.axes]
    shown, second = labels[1].get_text().split("\n")
    start, end = shown.split("…")
    assert long.startswith(start) and long.endswith(end) and len(shown) < len(long) and second == "31.20 dB"
    assert labels[1].get_window_extent().width <= 120 and labels[1].get_window_extent().y0 > c.y1
    assert [label.get_text() for label in labels[::2]] == ["short", ""] and labels[3].get_text() == "_$a"
    (frame,) = figure.axes[2].patches
    assert frame.get_bbox().bounds == (4, 6, 8, 8) and not figure.axes[0].patches


@pytest.mark.parametrize("length", [1, 7, 64, 100, 224, 225, 448, 449, 5000])
def test_size_of_panels(length):
    zoom = panel_zoom(length)
    assert 224 <= round(length * zoom) <= 448 and (zoom == int(zoom) or length > 448)
    assert panel_size(torch.empty(3, 1, length), 0.1) == (max(round(length * 0.1), 1), 1)


def test_nothing_is_half_written(tmp_path):
    """Nor left in the state of pyplot."""
    figure = panel_figure([[Panel(noise(8, 8), "", (8, 8))]])
    for name in ("figure.txt", "none/figure.png"):
        with pytest.raises(HatlibError, match="Cannot write"):
            write_figure(tmp_path / name, figure)
    assert not list(tmp_path.iterdir()) and pyplot.get_fignums() == []

"""Draws figures of the README and the documentation: `python docs/make_figures.py`."""

from pathlib import Path

import torch

import hatlib
from hatlib.data import imresize, read_rgb
from hatlib.imageio.figure import Panel, panel_figure, write_figure
from hatlib.inference import Upscaler
from hatlib.training.figures import draw_curves

DOCS = Path(__file__).parent


def draw_comparison(source: Path, box: tuple[int, int, int, int], target: Path) -> None:
    """Draws a part of a photo at four times its size, enlarged by bicubic interpolation and by the shipped model.

    Args:
        source: photo.
        box: part of the enlarged photo as left, top, width and height.
        target: image file to write.
    """
    photo = read_rgb(source)
    upscaler = Upscaler(hatlib.create_model("hat_t_x4", pretrained=True))
    restored = torch.from_numpy(upscaler(photo.permute(1, 2, 0).numpy())).permute(2, 0, 1)
    images = {"bicubic": imresize(photo, 4), "hat_t_x4": restored}
    write_figure(target, panel_figure([[Panel(image, name, box[2:], view=box) for name, image in images.items()]]))


if __name__ == "__main__":
    draw_comparison(DOCS.parent / "examples/guitar.png", (120, 100, 400, 360), DOCS / "images/guitar.png")
    draw_curves(DOCS / "logs/x4.jsonl", DOCS / "images/hat_t_x4_curves.png")

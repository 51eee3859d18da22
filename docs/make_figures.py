"""Makes the pictures of the README and the documentation: `python docs/make_figures.py`."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

import hatlib
from hatlib.data import imresize
from hatlib.inference import Upscaler

ROOT = Path(__file__).parent.parent


def side_by_side(source: Path, box: tuple[int, int, int, int], target: Path) -> None:
    """A crop of a photo made four times larger by bicubic interpolation and by the shipped model."""
    low = np.array(Image.open(source).convert("RGB"))
    bicubic = imresize(torch.from_numpy(low).permute(2, 0, 1), 4).permute(1, 2, 0).numpy()
    ours = Upscaler(hatlib.create_model("hat_t_x4", pretrained=True))(low)
    left, top, right, bottom = box
    sheet = Image.new("RGB", (2 * (right - left) + 8, bottom - top + 20), "white")
    for i, (name, picture) in enumerate((("bicubic", bicubic), ("hat_t_x4", ours))):
        x = i * (right - left + 8)
        sheet.paste(Image.fromarray(picture).crop(box), (x, 20))
        ImageDraw.Draw(sheet).text((x + 2, 4), name, fill="black")
    target.parent.mkdir(exist_ok=True)
    sheet.save(target, optimize=True)


if __name__ == "__main__":
    side_by_side(ROOT / "examples/guitar.png", (120, 100, 520, 460), ROOT / "docs/images/guitar.png")

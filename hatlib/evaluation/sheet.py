"""A picture that compares models by eye: the same crop from each, enlarged, with the figures under it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from hatlib.data import ImagePairs
from hatlib.errors import HatlibError
from hatlib.evaluation.candidates import Candidate
from hatlib.evaluation.protocol import Evaluation, restore
from hatlib.imageio import Image, write_image
from hatlib.imageio.drawing import Panel, draw_row, framed, stacked, to_pil
from hatlib.metrics import rgb_to_y

if TYPE_CHECKING:
    from PIL import Image as PILImage

__all__ = ["SheetRow", "draw_sheet", "sheet_rows"]

TILE = 240  # side of an enlarged crop


@dataclass(frozen=True)
class SheetRow:
    """One image of a sheet.

    Args:
        title: what is written over it.
        lr: what the models see.
        hr: the original.
        results: by model, bicubic first: what it made, and the line of figures under it.

    Shape:
        lr: (3, H, W), hr and results: (3, scale * H, scale * W), uint8.
    """

    title: str
    lr: Tensor
    hr: Tensor
    results: Mapping[str, tuple[Tensor, str]]


def sheet_rows(
    rows: Sequence[Candidate],
    data: Mapping[str, ImagePairs],
    evaluation: Evaluation,
    names: Sequence[str] = (),
    worst: int = 2,
) -> list[SheetRow]:
    """What `draw_sheet` draws, from an evaluation: the images are read and restored once more.

    Args:
        rows: what was compared.
        data: the data sets.
        evaluation: its outcome, for the figures.
        names: the images; if empty, of each data set the `worst` ones for the first row (bicubic).
        worst: how many.

    Raises:
        HatlibError: If an image is in no data set, or a model failed on it, or on all.
    """
    failed = {(r.data, r.image) for r in evaluation.failures}
    done = [r for r in evaluation.results if r.model == rows[0].name and (r.data, r.image) not in failed]
    if names:
        if unknown := set(names) - {r.image for r in done}:
            raise HatlibError(f"No evaluated image is called {', '.join(sorted(unknown))}.")
        chosen = [r for r in done if r.image in names]
    else:
        ranked = sorted(done, key=lambda r: r.psnr)
        chosen = [r for name in data for r in [r for r in ranked if r.data == name][:worst]]
    if not chosen:
        raise HatlibError("There is nothing to draw: no image was evaluated by all models.")
    figures = {(r.data, r.image, r.model): f"{r.psnr:.2f} dB" for r in evaluation.results}
    device = torch.device(evaluation.device)
    runs = {row.name: restore(row, evaluation.scale, device, evaluation.tile, evaluation.self_ensemble) for row in rows}
    result = []
    for r in chosen:
        pairs = data[r.data]
        index = next(i for i in range(len(pairs)) if pairs.name(i) == r.image)
        _, lr, hr = pairs[index]
        images = {name: (run(lr), figures[r.data, r.image, name]) for name, run in runs.items()}
        result.append(SheetRow(f"{r.data}: {r.image}", lr, hr, images))
    return result


def draw_sheet(path: str | os.PathLike, rows: list[SheetRow], crop: int = 64) -> None:
    """Draws a row per image: the original with a frame, then that part of it from LR, every model and the original.

    The crop is where the first result (bicubic) is farthest from the original.

    Args:
        path: image file to write; an existing one is replaced.
        rows: the images.
        crop: side of the crops in HR pixels, about; it is made to fit the scale and the image.

    Raises:
        HatlibError: If the file can't be written.
    """
    column = max(_thumbnail_width(row) for row in rows)
    write_image(Path(path), Image(stacked([_draw_row(row, crop, column) for row in rows])))


def hardest_region(reference: Tensor, other: Tensor, side: int, step: int) -> tuple[int, int]:
    """Top and left, multiples of `step`, of the square of `side` pixels in which the luma differs most.

    Shape:
        reference, other: (3, H, W), uint8.
    """
    error = (rgb_to_y(reference / 255.0) - rgb_to_y(other / 255.0)).square()
    means = avg_pool2d(error[None], side, step)[0, 0]
    row, column = divmod(int(means.argmax()), means.shape[1])
    return row * step, column * step


def _draw_row(row: SheetRow, crop: int, column: int) -> PILImage.Image:
    from PIL import Image as PILImage

    scale = row.hr.shape[1] // row.lr.shape[1]
    side = max(min(crop // scale, *row.lr.shape[1:]), 1) * scale
    top, left = hardest_region(row.hr, next(iter(row.results.values()))[0], side, scale)

    def part(image: Tensor, factor: int = 1) -> PILImage.Image:
        y, x, n = top // factor, left // factor, side // factor
        return to_pil(image[:, y : y + n, x : x + n]).resize((TILE, TILE), PILImage.Resampling.NEAREST)

    tiles = [("LR", f"{row.lr.shape[2]}x{row.lr.shape[1]}", part(row.lr, scale))]
    tiles += [(name, figures, part(image)) for name, (image, figures) in row.results.items()]
    tiles.append(("HR", f"{row.hr.shape[2]}x{row.hr.shape[1]}", part(row.hr)))

    full = to_pil(row.hr)
    width = _thumbnail_width(row)
    zoom = width / full.width
    full = full.resize((width, max(round(full.height * zoom), 1)), PILImage.Resampling.LANCZOS)
    full = framed(full, [v * zoom for v in (left, top, left + side, top + side)])
    return draw_row([Panel(full, [row.title], column), *(Panel(tile, lines) for *lines, tile in tiles)])


def _thumbnail_width(row: SheetRow) -> int:
    """As high as a crop, but no wider than two of them."""
    return max(min(round(TILE * row.hr.shape[2] / row.hr.shape[1]), 2 * TILE), 1)

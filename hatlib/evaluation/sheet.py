"""Sheets for visual comparison: the same close-up of each result with its PSNR, in one row per image."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from hatlib.data import ImagePairs
from hatlib.errors import HatlibError
from hatlib.evaluation.candidates import Candidate
from hatlib.evaluation.protocol import Evaluation, restore
from hatlib.imageio.figure import Panel, panel_figure, panel_size, panel_zoom, write_figure
from hatlib.metrics import rgb_to_y

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["SheetRow", "draw_sheet", "sheet_figure", "sheet_rows"]


@dataclass(frozen=True)
class SheetRow:
    """One image of a sheet.

    Args:
        title: caption of the original.
        lr: input of the models.
        hr: original.
        results: output and caption (such as "31.20 dB") by the name of the model, bicubic first.

    Shape:
        lr: (3, H, W), uint8
        hr, results: (3, scale * H, scale * W), uint8
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
    """Collects the rows of a sheet: reads images of an evaluation and restores them again.

    Args:
        rows: models that were evaluated, bicubic first.
        data: data sets that were evaluated.
        evaluation: results, for the PSNR and the settings of the models.
        names: images to show; by default the `worst` images of each data set.
        worst: number of images with the lowest PSNR of the first model (bicubic).

    Raises:
        HatlibError: if an image was not evaluated, or no image was evaluated by all models.
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


def draw_sheet(path: str | os.PathLike, rows: Sequence[SheetRow], crop: int = 64) -> None:
    """Draws one row per image: the original, then close-ups of the input, of each result and of the original.

    The close-ups show where the first result (bicubic) differs most from the original.

    Args:
        path: image file to write; an existing file is replaced.
        rows: images with their results.
        crop: approximate size of the close-ups in HR pixels, adapted to the scale and the image.

    Raises:
        HatlibError: if the file cannot be written.
    """
    write_figure(path, sheet_figure(rows, crop))


def sheet_figure(rows: Sequence[SheetRow], crop: int = 64) -> Figure:
    """Returns the figure of `draw_sheet`."""
    return panel_figure([_panels(row, crop) for row in rows])


def hardest_region(reference: Tensor, other: Tensor, side: int, step: int) -> tuple[int, int]:
    """Top and left of the square of `side` pixels where the luma differs most, as multiples of `step`.

    Shape:
        reference, other: (3, H, W), uint8
    """
    error = (rgb_to_y(reference / 255.0) - rgb_to_y(other / 255.0)).square()
    means = avg_pool2d(error[None], side, step)[0, 0]
    row, column = divmod(int(means.argmax()), means.shape[1])
    return row * step, column * step


def _panels(row: SheetRow, crop: int) -> list[Panel]:
    (height, width), (lr_height, lr_width) = row.hr.shape[1:], row.lr.shape[1:]
    scale = height // lr_height
    side = max(min(crop // scale, lr_height, lr_width), 1) * scale
    top, left = hardest_region(row.hr, next(iter(row.results.values()))[0], side, scale)
    tile = round(side * panel_zoom(side))

    def close_up(image: Tensor, caption: str, scale: int = 1) -> Panel:
        return Panel(image, caption, (tile, tile), scale, view=(left, top, side, side))

    zoom = min(tile / height, 2 * tile / width)  # as high as the close-ups, but at most twice as wide
    return [
        Panel(row.hr, row.title, panel_size(row.hr, zoom), frame=(left, top, side)),
        close_up(row.lr, f"LR\n{lr_width}x{lr_height}", scale),
        *(close_up(image, f"{name}\n{figures}") for name, (image, figures) in row.results.items()),
        close_up(row.hr, f"HR\n{width}x{height}"),
    ]

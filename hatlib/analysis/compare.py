"""Local attribution maps of several networks on image files: one image, or all of a folder."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from hatlib.analysis.lam import Attribution, Window, centre_window, lam
from hatlib.data import imresize, read_rgb
from hatlib.errors import HatlibError, first_line

__all__ = ["Bicubic", "Comparison", "Subject", "as_csv", "compare", "load_subject", "mean_ranks"]


class Bicubic(nn.Module):
    """MATLAB's bicubic interpolation as a network, for comparison. (B, C, h, w) -> (B, C, s * h, s * w)."""

    def __init__(self, scale: int):
        super().__init__()
        self.upscale = scale

    def forward(self, x: Tensor) -> Tensor:
        return imresize(x, self.upscale)


@dataclass(frozen=True)
class Subject:
    """What is analysed: an input, its original if there is one, and the window in output pixels.

    Shape:
        lr: (3, h, w), hr: (3, s * h, s * w), both RGB, uint8.
    """

    lr: Tensor
    hr: Tensor | None
    window: Window


@dataclass(frozen=True)
class Comparison:
    """The outcome for one image: an attribution by the name of each network, or `error`, which says why not."""

    image: str
    subject: Subject | None = None
    results: Mapping[str, Attribution] = field(default_factory=dict)
    error: str | None = None


def load_subject(
    path: str | os.PathLike,
    scale: int,
    window: Window | None = None,
    *,
    is_lr: bool = False,
    crop: int | None = None,
) -> Subject:
    """Reads an image and makes the input of it.

    Args:
        path: image file: the original, of which the input is made by MATLAB's bicubic rule, or the input.
        scale: output size over input size.
        window: left, top and side in pixels of the whole output; by default 16x16 in the middle.
        is_lr: whether the file is the input.
        crop: take only this many input pixels squared around the window; the whole image if None.

    Raises:
        HatlibError: if the file can't be read, or the window lies outside.
    """
    image = read_rgb(path)
    step = 1 if is_lr else scale
    height, width = (n // step for n in image.shape[1:])
    if 0 in (height, width):
        raise HatlibError(f"'{path}' has fewer pixels than the scale of {scale}.")
    x, y, side = window or centre_window(height * scale, width * scale)
    if side < 1 or min(x, y) < 0 or x + side > width * scale or y + side > height * scale:
        raise HatlibError(
            f"The window {x},{y},{side} (x, y, size) does not lie within the output of '{path}', which has "
            f"{width * scale}x{height * scale} pixels."
        )
    left, top, columns, rows = 0, 0, width, height
    if crop is not None:
        if crop * scale < side:
            raise HatlibError(f"{crop} input pixels have no room for a window of {side} output pixels.")
        columns, rows = min(crop, width), min(crop, height)
        left = min(max((x + side // 2) // scale - columns // 2, 0), width - columns)
        top = min(max((y + side // 2) // scale - rows // 2, 0), height - rows)
    part = image[:, top * step : (top + rows) * step, left * step : (left + columns) * step].contiguous()
    shifted = (x - left * scale, y - top * scale, side)
    return Subject(part, None, shifted) if is_lr else Subject(imresize(part, 1 / scale), part, shifted)


def compare(
    models: Mapping[str, nn.Module],
    files: Mapping[str, Path],
    load: Callable[[Path], Subject],
    progress: Callable[[float, int], None] | None = None,
    **options: Any,
) -> Iterator[Comparison]:
    """Attributions of several networks for one image after the other; what fails for one is in its place.

    Args:
        models: the networks by name.
        files: image files by name.
        load: gives the subject of a file.
        progress: called as progress(done, total) with the attributions done, the one in progress as a fraction.
        options: of `lam`.
    """
    total = len(files) * len(models)
    for i, (image, file) in enumerate(files.items()):
        subject, results, at = None, {}, ""
        try:
            subject = load(file)
            for j, (at, model) in enumerate(models.items()):

                def step(done: int, of: int, before: int = i * len(models) + j) -> None:
                    if progress is not None:
                        progress(before + done / of, total)

                results[at] = lam(model, subject.lr, subject.window, progress=step, **options)
        except HatlibError as error:
            message = str(error) if str(file) in str(error) else f"{at} on '{file}': {error}".removeprefix(" on ")
            yield Comparison(image, subject, error=message)
        except Exception as error:  # a foreign network may raise anything; the other images are done nevertheless
            message = f"{at or 'Reading'} fails on '{file}': {type(error).__name__}: {first_line(error)}."
            yield Comparison(image, subject, error=message)
        else:
            yield Comparison(image, subject, results)


def mean_ranks(values: Sequence[Sequence[float]]) -> list[float]:
    """Mean place of each column among the values of a row, 1 being the largest; equal values share their places."""
    places = [[1 + sum(w > v for w in row) + (sum(w == v for w in row) - 1) / 2 for v in row] for row in values]
    return [sum(column) / len(column) for column in zip(*places, strict=True)]


def as_csv(indices: Mapping[str, Mapping[str, float]]) -> str:
    """A line per image, then the mean and the mean rank (1: the largest value) of each network.

    Args:
        indices: diffusion indices, by image and network.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    values = [list(row.values()) for row in indices.values()]
    writer.writerow(["image", *next(iter(indices.values()))])
    writer.writerows([image, *(f"{v:.4f}" for v in row)] for image, row in zip(indices, values, strict=True))
    writer.writerow(["mean", *(f"{math.fsum(column) / len(column):.4f}" for column in zip(*values, strict=True))])
    writer.writerow(["mean rank", *(f"{rank:.3f}" for rank in mean_ranks(values))])
    return text.getvalue()

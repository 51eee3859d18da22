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

from hatlib.analysis.lam import Attribution, Window, center_window, checked_window, lam
from hatlib.data import imresize, read_rgb
from hatlib.errors import HatlibError, first_line

__all__ = ["LamComparison", "LamInput", "as_csv", "compare_attributions", "load_input", "mean_ranks"]


@dataclass(frozen=True)
class LamInput:
    """What is analyzed: an input, or a part of one, and the window.

    Attributes:
        lr: the input.
        hr: the original, if there is one.
        window: left, top and side in output pixels, of the part that was taken.
        origin: left and top of the part in pixels of the whole input.

    Shape:
        lr: (3, h, w), hr: (3, s * h, s * w), both RGB, uint8.
    """

    lr: Tensor
    hr: Tensor | None
    window: Window
    origin: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class LamComparison:
    """The outcome for one image.

    Attributes:
        image: its name.
        lam_input: what was analyzed; None if the image can't be read or has no such window.
        results: by the name of each network that succeeded.
        errors: why not, one sentence for the image or for each network that failed.
    """

    image: str
    lam_input: LamInput | None = None
    results: Mapping[str, Attribution] = field(default_factory=dict)
    errors: Sequence[str] = ()


def load_input(
    path: str | os.PathLike,
    scale: int,
    window: Window | None = None,
    *,
    is_lr: bool = False,
    crop: int | None = None,
) -> LamInput:
    """Reads an image and makes the input of it.

    Args:
        path: image file: the original, of which the input is made by MATLAB's bicubic rule, or the input.
        scale: output size over input size.
        window: left, top and side in pixels of the whole output; by default 16x16 in the middle.
        is_lr: whether the file is the input.
        crop: take only this many input pixels squared around the window; the whole image if None.

    Raises:
        HatlibError: if the file can't be read, the window lies outside, or `crop` is larger than the input or too small
            for the window.
    """
    image = read_rgb(path)
    step = 1 if is_lr else scale
    height, width = (n // step for n in image.shape[1:])
    if 0 in (height, width):
        raise HatlibError(f"'{path}' has fewer pixels than the scale of {scale}.")
    whole = height * scale, width * scale
    x, y, side = checked_window(window or center_window(*whole), *whole, f"the output of '{path}'")
    left, top, columns, rows = 0, 0, width, height
    if crop is not None:
        if crop > min(height, width):
            raise HatlibError(
                f"'{path}' gives {width}x{height} input pixels, fewer than the {crop}x{crop} to be taken."
            )
        left, top = (_around(start, side, scale, crop, length) for start, length in ((x, width), (y, height)))
        columns = rows = crop
    part = image[:, top * step : (top + rows) * step, left * step : (left + columns) * step].contiguous()
    shifted = (x - left * scale, y - top * scale, side)
    lr, hr = (part, None) if is_lr else (imresize(part, 1 / scale), part)
    return LamInput(lr, hr, shifted, (left, top))


def _around(start: int, side: int, scale: int, crop: int, length: int) -> int:
    """Where `crop` of `length` input pixels begin, around the middle of a window, all of which they hold."""
    first, last = max(-(-(start + side) // scale) - crop, 0), min(start // scale, length - crop)
    if first > last:
        raise HatlibError(f"{crop} input pixels have no room for a window of {side} output pixels from {start} on.")
    return min(max((start + side // 2) // scale - crop // 2, first), last)


def compare_attributions(
    models: Mapping[str, nn.Module],
    files: Mapping[str, Path],
    load: Callable[[Path], LamInput],
    progress: Callable[[float, int], None] | None = None,
    **options: Any,
) -> Iterator[LamComparison]:
    """Attributions of several networks for one image after the other; what fails does not stop the others.

    Args:
        models: the networks by name.
        files: image files by name.
        load: gives the lam_input of a file.
        progress: called as progress(done, total) with the attributions done, the one in progress as a fraction.
        options: of `lam`.
    """
    total = len(files) * len(models)
    for i, (image, file) in enumerate(files.items()):
        try:
            lam_input = load(file)
        except Exception as error:
            yield LamComparison(image, errors=[_failure(error, file)])
            continue
        results, errors = {}, []
        for j, (name, model) in enumerate(models.items()):

            def step(done: int, of: int, before: int = i * len(models) + j) -> None:
                if progress is not None:
                    progress(before + done / of, total)

            try:
                results[name] = lam(model, lam_input.lr, lam_input.window, progress=step, **options)
            except Exception as error:  # a foreign network may raise anything
                errors.append(_failure(error, file, name))
        yield LamComparison(image, lam_input, results, errors)


def _failure(error: Exception, file: Path, network: str | None = None) -> str:
    """What went wrong with a file, or with a network on it, in one sentence."""
    if not isinstance(error, HatlibError):
        return f"{network or 'Reading'} fails on '{file}': {type(error).__name__}: {first_line(error)}."
    if str(file) in str(error):
        return str(error)
    return f"{network} on '{file}': {error}" if network else f"'{file}': {error}"


def mean_ranks(values: Sequence[Sequence[float]]) -> list[float]:
    """Mean place of each column among the values of a row, 1 being the largest; equal values share their places."""
    places = [[1 + sum(w > v for w in row) + (sum(w == v for w in row) - 1) / 2 for v in row] for row in values]
    return [sum(column) / len(column) for column in zip(*places, strict=True)]


def as_csv(indices: Mapping[str, Mapping[str, float]]) -> str:
    """A line per image, then the mean and the mean rank (1: the largest value) of each network.

    A network that has no index for an image has an empty field there, and the image is left out of the means; one that
    has none at all is left out.

    Args:
        indices: diffusion indices, by image and network; one at least.
    """
    names = list(dict.fromkeys(name for row in indices.values() for name in row))
    complete = [[row[name] for name in names] for row in indices.values() if len(row) == len(names)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", *names])
    for image, row in indices.items():
        writer.writerow([image, *(f"{row[name]:.4f}" if name in row else "" for name in names)])
    if complete:
        columns = zip(*complete, strict=True)
        writer.writerow(["mean", *(f"{math.fsum(column) / len(column):.4f}" for column in columns)])
        writer.writerow(["mean rank", *(f"{rank:.3f}" for rank in mean_ranks(complete))])
    return text.getvalue()

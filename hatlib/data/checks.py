"""Every problem of a data set, found before the training and not by it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hatlib.blocks.imresize import imresize
from hatlib.data.datasets import LR_FOLDERS, ImagePairs, benchmark_folders
from hatlib.data.files import index_images, read_rgb
from hatlib.errors import HatlibError
from hatlib.metrics import psnr

__all__ = ["check_dataset"]

MIN_SIMILARITY = 20.0
"""An LR image that is less than this many dB from its HR image's bicubic reduction is taken as another picture."""

Progress = Callable[[int, int], None]


def check_dataset(
    folder: str | os.PathLike,
    lr: str | os.PathLike | None = None,
    scale: int | None = None,
    *,
    patch: int = 0,
    workers: int | None = None,
    progress: Progress | None = None,
) -> tuple[list[str], list[str]]:
    """Decodes every image of a data set, and compares LR with HR images.

    Problems: files that can't be read to the end, or that data sets don't take (16 bits, transparency); equal pixels
    under two names; images smaller than the patch; partners that are missing, left over, of the wrong size, or of
    another picture.

    Args:
        folder: HR images, or a benchmark with HR and LR_bicubic/X4 (of which all scales are checked).
        lr: folder of LR images; needs `scale`.
        scale: HR size over LR size; if None, all for which `folder` has LR images.
        patch: least side of HR images; 0 for none.
        workers: threads; one per processor if None.
        progress: called as progress(done, total) after each image of a folder.

    Returns:
        What was found in good order, and the problems: a sentence each.

    Raises:
        HatlibError: If a folder doesn't exist or holds no images.
    """
    if lr is not None and scale is None:
        raise HatlibError("With LR images, say their scale (--scale).")
    hr = benchmark_folders(folder, scale or 1)[0]
    facts, problems = [], []
    images = index_images(hr)
    seen: dict[bytes, str] = {}
    for name, answer in _each(lambda i: _inspect(images.path(i)), images, workers, progress):
        if isinstance(answer, HatlibError):
            problems.append(str(answer))
            continue
        size, digest = answer
        if (twin := seen.setdefault(digest, name)) != name:
            problems.append(f"'{name}' has the same pixels as '{twin}'.")
        if min(size) < patch:
            problems.append(f"'{name}' is {size[1]}x{size[0]}, smaller than the patch of {patch}.")
    low, high = images.sizes.min(0), images.sizes.max(0)
    facts.append(f"{hr}: {len(images)} images, {low[1]}x{low[0]} to {high[1]}x{high[0]}")
    for factor, place in _lr_folders(folder, lr, scale):
        try:
            pairs = ImagePairs(hr, place, scale=factor)
        except HatlibError as error:
            problems.append(str(error))
            continue
        exact = 0
        for name, answer in _each(lambda i, pairs=pairs: _compare(pairs, i), pairs.hr, workers, progress):
            if isinstance(answer, HatlibError):
                if str(answer) not in problems:
                    problems.append(str(answer))
            elif answer < MIN_SIMILARITY:
                problems.append(f"'{name}' and its partner in '{place}' are {answer:.1f} dB apart: another picture?")
            else:
                exact += answer == float("inf")
        facts.append(f"{place}: {len(pairs)} images, {exact} of them exactly MATLAB's bicubic reduction of HR")
    return facts, problems


def _lr_folders(
    folder: str | os.PathLike, lr: str | os.PathLike | None, scale: int | None
) -> list[tuple[int, str | os.PathLike]]:
    if lr is not None:
        return [(scale, lr)]
    found = {}
    for factor in [scale] if scale else range(1, 17):
        for name in LR_FOLDERS:
            if (place := Path(folder) / name.format(s=factor)).is_dir():
                found.setdefault(factor, place)
    return list(found.items())


def _each(
    work: Callable[[int], object], names: object, workers: int | None, progress: Progress | None
) -> Iterator[tuple[str, object]]:
    """Name and answer for each image, in order, worked out in parallel; an error is an answer."""

    def guarded(index: int) -> object:
        try:
            return work(index)
        except HatlibError as error:
            return error

    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        for i, answer in enumerate(pool.map(guarded, range(len(names)))):
            if progress is not None:
                progress(i + 1, len(names))
            yield names[i], answer


def _inspect(path: Path) -> tuple[tuple[int, int], bytes]:
    """Height and width, and a digest of the pixels."""
    pixels = read_rgb(path)
    size = tuple(pixels.shape[1:])
    return size, hashlib.sha256(repr(size).encode() + pixels.numpy().tobytes()).digest()


def _compare(pairs: ImagePairs, index: int) -> float:
    """How many dB the LR image is from what MATLAB's rule makes of its HR image."""
    _, lr, hr = pairs[index]
    return psnr(imresize(hr, 1 / pairs.scale)[None], lr[None], y_channel=False).item()

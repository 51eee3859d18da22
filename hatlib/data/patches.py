"""Cutting large images into overlapping patches: a training then reads 480 x 480 pixels instead of a 2K image."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

from hatlib.atomic import write_text
from hatlib.data.datasets import ImagePairs
from hatlib.data.files import ImageIndex, index_images
from hatlib.errors import HatlibError
from hatlib.imageio import Image, read_image, write_image

__all__ = ["Extraction", "extract_patches", "patch_starts"]

RECORD = "patches.json"


@dataclass
class Extraction:
    """What was done: patches written, patches that were there already, and what failed, by file."""

    written: int = 0
    present: int = 0
    failures: list[str] = field(default_factory=list)


def patch_starts(length: int, size: int, step: int) -> list[int]:
    """Where patches begin on an axis: every `step` pixels, and one at the end so that nothing is left out.

    A side shorter than the patch gives one, which is as short.
    """
    if length <= size:
        return [0]
    starts = list(range(0, length - size + 1, step))
    return starts if starts[-1] == length - size else [*starts, length - size]


def extract_patches(
    source: str | os.PathLike,
    output: str | os.PathLike,
    *,
    size: int = 480,
    step: int = 240,
    lr: str | os.PathLike | None = None,
    scale: int = 1,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Extraction:
    """Cuts all images of a folder into patches NAME_s001.png, NAME_s002.png, ... in rows from the top left.

    Started again after an interruption it goes on: patches are written whole or not at all, and those that are there
    are not made again.

    Args:
        source: folder of images.
        output: folder for the patches; with `lr`, for its sub-folders HR and LR_bicubic/X2 (or X3, X4, ...).
        size: side of the patches.
        step: distance between them.
        lr: folder of the LR images, cut to match.
        scale: of these.
        workers: threads; one per processor if None.
        progress: called as progress(done, total) after each image.

    Returns:
        Counts, and the images that could not be cut.

    Raises:
        HatlibError: For impossible sizes, folders that don't match, and an `output` made with other settings.
    """
    if size < 1 or step < 1 or step > size:
        raise HatlibError(f"A patch is 1 or more pixels, and the step 1 to that many, not {size} and {step}.")
    if size % scale or step % scale:
        raise HatlibError(f"Size {size} and step {step} must be multiples of the scale x{scale}.")
    output = Path(output)
    jobs: list[tuple[ImageIndex, Path, int]]
    if lr is None:
        jobs = [(index_images(source), output, 1)]
    else:
        pairs = ImagePairs(source, lr, scale=scale)
        jobs = [(pairs.hr, output / "HR", 1), (pairs.lr, output / "LR_bicubic" / f"X{scale}", scale)]
    names = [os.path.splitext(name)[0] for name in jobs[0][0]]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise HatlibError(f"Several images of '{source}' are called '{twice}': their patches would have one name.")
    _check_record(output, {"source": str(Path(source).resolve()), "size": size, "step": step, "scale": scale})
    result = Extraction()
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        futures = {}
        for images, folder, divisor in jobs:
            for i, name in enumerate(names):
                grid = (size // divisor, step // divisor, scale // divisor)
                futures[pool.submit(_cut, images, i, folder / name, grid)] = None
        try:
            for done, future in enumerate(as_completed(futures), 1):
                try:
                    written, present = future.result()
                    result.written += written
                    result.present += present
                except HatlibError as error:
                    result.failures.append(str(error))
                if progress is not None:
                    progress(done, len(futures))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    result.failures.sort()
    return result


def _cut(images: ImageIndex, index: int, stem: Path, grid: tuple[int, int, int]) -> tuple[int, int]:
    """Cuts one image; the grid is size, step, and of what the sides are cropped to multiples. Counts its patches."""
    size, step, multiple = grid
    path = images.path(index)
    height, width = (int(side) // multiple * multiple for side in images.sizes[index])
    if not height:
        read_image(path)  # which says what is wrong with it
        raise HatlibError(f"'{path}' can't be read.")
    corners = [(y, x) for y in patch_starts(height, size, step) for x in patch_starts(width, size, step)]
    files = [stem.with_name(f"{stem.name}_s{n:03d}.png") for n in range(1, len(corners) + 1)]
    missing = [(file, corner) for file, corner in zip(files, corners, strict=True) if not file.exists()]
    if missing:
        pixels = read_image(path).pixels
        stem.parent.mkdir(parents=True, exist_ok=True)
        for file, (y, x) in missing:
            part = pixels[y : min(y + size, height), x : min(x + size, width)]
            write_image(file, Image(part))
    return len(missing), len(files) - len(missing)


def _check_record(output: Path, settings: dict[str, object]) -> None:
    """Patches of other settings must not mix with these: a file beside them says how they were made."""
    record = output / RECORD
    if record.is_file():
        try:
            before = json.loads(record.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise HatlibError(f"'{record}' is damaged: delete the folder and cut again.") from error
        if before != settings:
            raise HatlibError(f"'{output}' holds patches made with other settings ({before}); choose another folder.")
        return
    if output.is_dir() and any(output.iterdir()):
        raise HatlibError(f"'{output}' holds other files; choose a new or empty folder.")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HatlibError(f"Cannot make the folder '{output}': {error.strerror}.") from error
    write_text(record, json.dumps(settings, indent=1) + "\n")

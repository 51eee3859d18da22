"""Pairs of a low- and a high-resolution image: whole ones for evaluation, random patches for training."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from hatlib.blocks.imresize import imresize
from hatlib.data.files import ImageIndex, index_images, read_gray, read_rgb, shorten_names
from hatlib.errors import HatlibError

__all__ = ["ImagePairs", "Pair", "TrainingPatches", "benchmark_folders", "open_benchmarks"]

Files = str | os.PathLike | Sequence[str] | None

HR_FOLDERS = ("HR", "GTmod12", "GT")
FLAT_TRIES, UNREADABLE_TRIES = 10, 50
LR_FOLDERS = ("LR_bicubic/X{s}", "LR_bicubic/x{s}", "LRbicx{s}", "LR/X{s}", "LR/x{s}", "X{s}", "x{s}")


class Pair(NamedTuple):
    """One image of a data set, and its name without suffix.

    Shape:
        lr: (3, H, W), hr: (3, scale * H, scale * W), RGB, or (1, ...) if read as gray; uint8.
    """

    name: str
    lr: Tensor
    hr: Tensor


class ImagePairs(Dataset):
    """HR images with their LR images, whole, as `Pair`.

    HR images are cropped to multiples of the scale (at the right and at the bottom). Names match as in `baby.png` and
    `babyx4.png`, with `_x4`, or if they are equal, whatever the suffix, and within sub-folders too. Names, counts and
    sizes are verified at once, from the heads of the files.

    Args:
        hr: folder of HR images.
        lr: folder of LR images; None makes them by MATLAB's bicubic, in 8 bits.
        scale: HR size over LR size.
        files: which HR images: names relative to `hr`, or a text file of them; all if None.
        cache: see `index_images`.
        in_memory: keep each image, decoded, once it was read; and the LR image that was made of it.
        gray: read images as gray, of one channel.
        skip_unreadable: leave out HR images whose head can't be read, and list them in `unreadable`.

    Attributes:
        unreadable: names of the images that were left out.

    Raises:
        HatlibError: If folders are empty, files have no partner, sizes don't fit the scale, or files can't be read; it
            names them.
    """

    def __init__(
        self,
        hr: str | os.PathLike,
        lr: str | os.PathLike | None = None,
        *,
        scale: int,
        files: Files = None,
        cache: str | os.PathLike | None = None,
        in_memory: bool = False,
        gray: bool = False,
        skip_unreadable: bool = False,
    ):
        if not isinstance(scale, int) or scale < 1:
            raise HatlibError(f"The scale is a whole number from 1 up, not {scale!r}.")
        self.scale, self.gray = scale, gray
        self.hr = index_images(hr, files, cache=cache)
        self._kept: dict[tuple[str, int], Tensor] | None = {} if in_memory else None
        readable = self.hr.sizes.min(1) > 0
        self.unreadable = [self.hr[int(i)] for i in np.flatnonzero(~readable)]
        if self.unreadable and not (skip_unreadable and readable.any()):
            raise HatlibError(
                f"{len(self.unreadable)} images of '{hr}' can't be read: {shorten_names(self.unreadable)}."
            )
        if self.unreadable:
            self.hr = self.hr.subset(np.flatnonzero(readable))
        every = files is None and not self.unreadable
        self.lr = None if lr is None else self._matched(index_images(lr, cache=cache), every)
        self._verify_sizes()

    def _matched(self, lr: ImageIndex, every: bool) -> ImageIndex:
        """The LR images in the order of the HR images."""
        by_stem: dict[str, list[int]] = {}
        for i, name in enumerate(lr):
            stem = os.path.splitext(name)[0]
            without = re.sub(rf"[_-]?[xX]{self.scale}$", "", stem)
            for key in {stem, without}:
                by_stem.setdefault(key, []).append(i)
        found = [by_stem.get(os.path.splitext(name)[0], []) for name in self.hr]
        if gaps := [name for name, matches in zip(self.hr, found, strict=True) if not matches]:
            said = {match[1] for name in lr if (match := re.search(r"[xX](\d)\.\w+$", name))} - {str(self.scale)}
            raise HatlibError(
                f"{len(gaps)} of {len(self.hr)} images of '{self.hr.root}' have no partner in '{lr.root}', such as "
                f"NAME.png or NAMEx{self.scale}.png: {shorten_names(gaps)}."
                + (f" The names there end in x{', x'.join(sorted(said))}: is x{self.scale} the scale?" if said else "")
            )
        if several := [name for name, matches in zip(self.hr, found, strict=True) if len(matches) > 1]:
            first = [lr[i] for i in next(matches for matches in found if len(matches) > 1)]
            raise HatlibError(
                f"{len(several)} images of '{self.hr.root}' have several partners in '{lr.root}': {several[0]} has "
                f"{shorten_names(first)}."
            )
        used = [matches[0] for matches in found]
        if every and (extra := sorted(set(range(len(lr))) - set(used))):
            raise HatlibError(
                f"{len(extra)} of {len(lr)} images of '{lr.root}' belong to no image of '{self.hr.root}': "
                f"{shorten_names([lr[i] for i in extra])}."
            )
        if len(set(used)) < len(used):
            twice = next(i for i in used if used.count(i) > 1)
            raise HatlibError(f"Several images of '{self.hr.root}' have the same partner, '{lr.path(twice)}'.")
        return lr.subset(used)

    def _verify_sizes(self) -> None:
        expected = self.hr.sizes // self.scale
        if small := [self.hr[int(i)] for i in np.flatnonzero(expected.min(1) == 0)]:
            raise HatlibError(
                f"{len(small)} images of '{self.hr.root}' are smaller than the scale x{self.scale}: "
                f"{shorten_names(small)}."
            )
        if self.lr is None:
            return
        wrong = [
            f"{self.lr[int(i)]} is {_by(self.lr.sizes[i])} where {self.hr[int(i)]} of {_by(self.hr.sizes[i])} wants "
            f"{_by(expected[i])}"
            for i in np.flatnonzero((self.lr.sizes != expected).any(1))
        ]
        if wrong:
            raise HatlibError(
                f"{len(wrong)} images of '{self.lr.root}' are not 1/{self.scale} of those of '{self.hr.root}'; is x"
                f"{self.scale} the scale? {shorten_names(wrong, 3)}."
            )

    def __len__(self) -> int:
        return len(self.hr)

    def __getitem__(self, index: int) -> Pair:
        hr = self.read_hr(index)
        return Pair(self.name(index), self.read_lr(index, hr), hr)

    def name(self, index: int) -> str:
        """Name of an image relative to the HR folder, without suffix."""
        return Path(self.hr[index]).with_suffix("").as_posix()

    def read_hr(self, index: int) -> Tensor:
        """An HR image, cropped to multiples of the scale.

        Shape: (3, scale * H, scale * W), uint8
        """
        hr = self._once("hr", index, lambda: self._read(self.hr, index))
        height, width = (side // self.scale * self.scale for side in hr.shape[1:])
        return hr[:, :height, :width]

    def read_lr(self, index: int, hr: Tensor) -> Tensor:
        """An LR image, read, or made of the HR image.

        Shape: hr (3, scale * H, scale * W) -> (3, H, W), uint8
        """
        if self.lr is not None:
            return self._once("lr", index, lambda: self._read(self.lr, index))
        return self._once("lr", index, lambda: imresize(hr, 1 / self.scale))

    @property
    def in_memory(self) -> bool:
        """Whether images are kept once they were read."""
        return self._kept is not None

    def _once(self, kind: str, index: int, make: Callable[[], Tensor]) -> Tensor:
        if self._kept is None:
            return make()
        if (kind, index) not in self._kept:
            self._kept[kind, index] = make()
        return self._kept[kind, index]

    def _read(self, images: ImageIndex, index: int) -> Tensor:
        image = (read_gray if self.gray else read_rgb)(images.path(index))
        if tuple(image.shape[1:]) != tuple(images.sizes[index]):
            raise HatlibError(
                f"'{images.path(index)}' was {_by(images.sizes[index])} when the folder was scanned and is "
                f"{_by(image.shape[1:])} now; touch its folder to have it scanned again."
            )
        return image


class TrainingPatches(Dataset):
    """Random aligned patches of `ImagePairs`, flipped and rotated, each a pure function of (seed, draw).

    Takes (index, draw) as `EndlessSampler` gives them, and gives `{"lr": ..., "hr": ...}`, floats in [0, 1]. Where LR
    images are made, it is from the part of the HR image that matters, with the pixels that the whole one gives; of
    images in memory it is the whole one, once.

    Args:
        pairs: the images.
        patch: side of the LR patches, in pixels.
        seed: of the crops, flips and rotations.
        flip: mirror half of the patches left to right.
        rotate: turn the patches by 0, 90, 180 or 270 degrees, each as often.
        small: what happens to images smaller than the patch: 'skip', or 'enlarge' to its size, of which the aspect is
            kept (only where LR images are made).
        min_std: draw again, ten times at most, where no channel of the LR patch has this standard deviation (of 255):
            flat patches, such as sky, teach little.
        skip_unreadable: draw again where an image can't be read, and give the names of such images, a line each,
            under "unreadable" in each sample.

    Attributes:
        skipped: how many images are too small.

    Shape: lr (3, patch, patch), hr (3, scale * patch, scale * patch)

    Raises:
        HatlibError: If no image is large enough, or an option is unknown.
    """

    def __init__(
        self,
        pairs: ImagePairs,
        patch: int = 64,
        *,
        seed: int = 0,
        flip: bool = True,
        rotate: bool = True,
        small: Literal["skip", "enlarge"] = "skip",
        min_std: float = 0.0,
        skip_unreadable: bool = False,
    ):
        if small not in ("skip", "enlarge") or (small == "enlarge" and pairs.lr is not None):
            raise HatlibError(f"small is 'skip' or, without a folder of LR images, 'enlarge', not {small!r}.")
        if patch < 1:
            raise HatlibError(f"A patch is 1 or more pixels, not {patch}.")
        self.pairs, self.patch, self.seed, self.flip, self.rotate = pairs, patch, seed, flip, rotate
        self.min_std, self.skip_unreadable = min_std, skip_unreadable
        large = pairs.hr.sizes.min(1) // pairs.scale >= patch
        self.usable = np.flatnonzero(large | (small == "enlarge"))
        self.skipped = len(pairs) - len(self.usable)
        if not len(self.usable):
            raise HatlibError(
                f"All {len(pairs)} images of '{pairs.hr.root}' are smaller than the patch of {patch * pairs.scale} "
                "pixels; choose a smaller one."
            )

    def __len__(self) -> int:
        return len(self.usable)

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any]:
        index, draw = item
        rng = np.random.default_rng((self.seed, draw))
        flat, unreadable = 0, []
        while True:
            i = int(self.usable[index])
            try:
                lr, hr = self._crop(i, rng)
            except HatlibError as error:
                if not self.skip_unreadable:
                    raise
                unreadable.append(self.pairs.hr[i])
                if len(unreadable) == UNREADABLE_TRIES:
                    raise HatlibError(
                        f"No image could be read in {UNREADABLE_TRIES} tries; the last one was: {error}"
                    ) from error
            else:
                if flat == FLAT_TRIES or lr.float().std((1, 2)).max() >= self.min_std:
                    break
                flat += 1
            index = int(rng.integers(len(self.usable)))
        turns, mirrored = int(rng.integers(4)), bool(rng.integers(2))
        if self.rotate:
            lr, hr = lr.rot90(turns, (1, 2)), hr.rot90(turns, (1, 2))
        if self.flip and mirrored:
            lr, hr = lr.flip(2), hr.flip(2)
        sample: dict[str, Any] = {"lr": lr.contiguous().float() / 255, "hr": hr.contiguous().float() / 255}
        return {**sample, "unreadable": "\n".join(unreadable)} if self.skip_unreadable else sample

    def _crop(self, i: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """A random patch of image `i`, LR and HR."""
        pairs, side, scale = self.pairs, self.patch, self.pairs.scale
        hr = pairs.read_hr(i)
        enlarged = min(hr.shape[1:]) < side * scale
        if enlarged:
            hr = pairs._once("hr", i, lambda: pairs._read(pairs.hr, i))  # to its last row and column
            factor = side * scale / min(hr.shape[1:])
            hr = imresize(hr, size=[max(side * scale, round(n * factor)) for n in hr.shape[1:]])
        height, width = (n // scale for n in hr.shape[1:])
        hr = hr[:, : height * scale, : width * scale]
        top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
        if pairs.lr is None and (enlarged or not pairs.in_memory):
            lr = _resized_part(hr, scale, top, left, side)
        else:
            lr = pairs.read_lr(i, hr)[:, top : top + side, left : left + side]
        return lr, hr[:, top * scale : (top + side) * scale, left * scale : (left + side) * scale]


def _resized_part(hr: Tensor, scale: int, top: int, left: int, side: int) -> Tensor:
    """A patch of `imresize(hr, 1 / scale)`, from a part of `hr` that holds all pixels of which it is made."""
    margin = 3  # LR pixels; the kernel reaches 2
    spans = []
    for start, full in ((top, hr.shape[1] // scale), (left, hr.shape[2] // scale)):
        first, last = max(start - margin, 0), min(start + side + margin, full)
        spans.append((first, last, start - first))
    (y0, y1, y), (x0, x1, x) = spans
    part = imresize(hr[:, y0 * scale : y1 * scale, x0 * scale : x1 * scale], 1 / scale)
    return part[:, y : y + side, x : x + side]


def benchmark_folders(folder: str | os.PathLike, scale: int) -> tuple[Path, Path | None]:
    """The HR and LR folders of a benchmark such as Set5/HR and Set5/LR_bicubic/X4.

    A folder without such a sub-folder is taken as HR images, of which the LR images are to be made; so are HR images
    if there are no LR images of this scale.

    Raises:
        HatlibError: If there is no such folder.
    """
    root = Path(folder)
    if not root.is_dir():
        raise HatlibError(f"There is no folder '{root}'.")
    hr = next((root / name for name in HR_FOLDERS if (root / name).is_dir()), None)
    if hr is None:
        return root, None
    candidates = (root / name.format(s=scale) for name in LR_FOLDERS)
    return hr, next((path for path in candidates if path.is_dir()), None)


def open_benchmarks(
    folders: Sequence[str | os.PathLike], scale: int, lr: Sequence[str | os.PathLike] = (), **options: Any
) -> dict[str, ImagePairs]:
    """The images of benchmarks, by name: that of the folder, or of the one above where it is called HR or the like.

    Args:
        folders: as `benchmark_folders` takes them.
        scale: HR size over LR size.
        lr: folders of LR images, one for each, if they are elsewhere.
        **options: those of `ImagePairs`.

    Raises:
        HatlibError: If two have one name, or anything about the images is not right.
    """
    data: dict[str, ImagePairs] = {}
    for i, folder in enumerate(folders):
        hr, own_lr = benchmark_folders(folder, scale)
        path = Path(folder).resolve()
        name = path.parent.name if path.name in HR_FOLDERS else path.name
        if name in data:
            raise HatlibError(f"Two data sets are called '{name}'; rename one of the folders.")
        data[name] = ImagePairs(hr, lr[i] if lr else own_lr, scale=scale, **options)
    return data


def _by(size: Sequence[int]) -> str:
    """Height and width as people write it: width x height."""
    return f"{size[1]}x{size[0]}"

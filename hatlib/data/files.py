"""Which images a folder holds: scanned once into an index that is kept, or named by a list."""

from __future__ import annotations

import hashlib
import os
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from hatlib.atomic import atomic_path
from hatlib.errors import HatlibError
from hatlib.imageio import IMAGE_SUFFIXES, read_image

__all__ = ["ImageIndex", "image_size", "index_images", "read_gray", "read_rgb", "shorten_names"]

MIN_CACHED_IMAGES = 1000
"""Folders of fewer images are scanned anew each time, which takes less than a second."""

_VERSION = 1

_forked_with_vips = False


def _note_fork() -> None:
    global _forked_with_vips
    _forked_with_vips = "pyvips" in sys.modules


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


def read_rgb(path: str | os.PathLike) -> Tensor:
    """Reads an 8-bit image as RGB: gray is repeated, an alpha channel that hides nothing is dropped.

    Shape: (3, H, W), uint8

    Raises:
        HatlibError: If the file can't be read, has 16 bits, or is partly transparent; or in a process that was forked.
    """
    if _forked_with_vips:  # whose threads a fork does not take along: it would wait for them forever
        raise HatlibError(
            "libvips does not survive a fork: start the workers afresh, as hatlib.data.training_loader does "
            "(DataLoader(..., multiprocessing_context='forkserver'))."
        )
    image = read_image(path)
    if image.bits != 8:
        raise HatlibError(f"'{path}' has 16 bits per channel; data sets are of 8 bits: convert it first.")
    pixels = image.pixels
    if image.has_alpha:
        if pixels[..., -1].min() < 255:
            raise HatlibError(f"'{path}' is partly transparent; put it on a background first.")
        pixels = pixels[..., :-1]
    if pixels.shape[2] == 1:
        pixels = pixels.repeat(3, axis=2)
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def read_gray(path: str | os.PathLike) -> Tensor:
    """Reads an 8-bit image as gray: colors become their BT.601 luma in the full range, as everywhere but in metrics.

    Shape: (1, H, W), uint8

    Raises:
        HatlibError: As `read_rgb`.
    """
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
    return torch.einsum("chw,c->hw", read_rgb(path).double(), weights).round().byte()[None]


def image_size(path: str | os.PathLike) -> tuple[int, int]:
    """Height and width of an image, upright, from the head of its file.

    Raises:
        HatlibError: If the file can't be opened or is no image.
    """
    import pyvips

    path = Path(path)
    try:
        image = pyvips.Image.new_from_source(pyvips.Source.new_from_file(os.fspath(path)), "")
    except pyvips.Error:  # what libvips does not read (BMP, PNM), or what nobody does
        height, width = read_image(path).pixels.shape[:2]
        return height, width
    turned = "orientation" in image.get_fields() and image.get("orientation") > 4
    return (image.width, image.height) if turned else (image.height, image.width)


class ImageIndex(Sequence[str]):
    """The images of a folder, sorted: their names relative to it, and their sizes. (0, 0) is an unreadable file.

    Names are kept as one block of bytes, so that a million of them are shared by all worker processes.

    Attributes:
        root: the folder.
        sizes: (n, 2) heights and widths, int32.
    """

    def __init__(self, root: Path, names: Iterable[str], sizes: np.ndarray):
        encoded = [os.fsencode(name) for name in names]
        self.root = root
        self.sizes = sizes
        self._ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        self._bytes = np.frombuffer(b"".join(encoded), np.uint8)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        start = self._ends[index - 1] if index else 0
        return os.fsdecode(self._bytes[start : self._ends[index]].tobytes())

    def path(self, index: int) -> Path:
        """Where image `index` is."""
        return self.root / self[index]

    def subset(self, chosen: Sequence[int] | np.ndarray) -> ImageIndex:
        """An index of the images with these numbers."""
        return ImageIndex(self.root, [self[int(i)] for i in chosen], self.sizes[np.asarray(chosen, dtype=np.int64)])


def index_images(
    folder: str | os.PathLike,
    files: str | os.PathLike | Sequence[str] | None = None,
    *,
    cache: str | os.PathLike | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ImageIndex:
    """The images of a folder and its sub-folders, or those of a list.

    Reading the sizes of a million images takes minutes, so the index of a large folder is kept in a file. It holds as
    long as nothing was added, removed or renamed; after that, only the sub-folders where it was are read again.

    Args:
        folder: where the images are.
        files: a text file with a name per line, relative to the folder ('#' begins a comment), or the names.
        cache: folder for kept indices; $HATLIB_CACHE, or ~/.cache/hatlib, if None.
        progress: called as progress(done, total) while sizes are read.

    Raises:
        HatlibError: If there is no such folder, it holds no images, or listed files are missing, which it names.
    """
    root = Path(folder)
    if not root.is_dir():
        raise HatlibError(f"There is no folder '{root}'.")
    if files is not None:
        names = _read_list(files) if isinstance(files, (str, os.PathLike)) else list(files)
        if not names:
            raise HatlibError(f"The list of files for '{root}' is empty.")
        if missing := [name for name in names if not (root / name).is_file()]:
            raise HatlibError(f"{len(missing)} listed files are not in '{root}': {shorten_names(missing)}.")
        return ImageIndex(root, names, _read_sizes(root, names, progress))
    kept_file = _cache_file(root, cache)
    kept = _load(kept_file)
    if kept is not None and all(_mtime(root / name) == mtime for name, mtime in kept["folders"]):
        return ImageIndex(root, kept["names"], kept["sizes"])
    names, folders = _scan(root)
    known: dict[str, list[int]] = {}
    if kept is not None:
        same = {name for name, _ in set(folders) & set(kept["folders"])}
        sizes_by_name = zip(kept["names"], kept["sizes"].tolist(), strict=True)
        known = {name: size for name, size in sizes_by_name if os.path.dirname(name) in same}
    if not names:
        raise HatlibError(f"The folder '{root}' holds no images ({', '.join(IMAGE_SUFFIXES)}).")
    new = [name for name in names if name not in known]
    known.update(zip(new, _read_sizes(root, new, progress).tolist(), strict=True))
    sizes = np.array([known[name] for name in names], np.int32)
    if len(names) >= MIN_CACHED_IMAGES:
        _save(kept_file, names, sizes, folders)
    return ImageIndex(root, names, sizes)


def shorten_names(names: Sequence[Any], limit: int = 5) -> str:
    """'a, b, c and 4 more'."""
    shown = ", ".join(map(str, names[:limit]))
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def _read_list(file: str | os.PathLike) -> list[str]:
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise HatlibError(f"Cannot read the list of files '{file}': {error}.") from error
    return [name for line in lines if (name := line.partition("#")[0].strip())]


def _scan(root: Path) -> tuple[list[str], list[tuple[str, int]]]:
    """Sorted names of images, and the folders with their times of change."""
    names, folders = [], []
    for place, inner, files in os.walk(root, followlinks=True):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        relative = os.path.relpath(place, root) if place != str(root) else ""
        folders.append((relative, _mtime(Path(place))))
        for file in files:
            if not file.startswith(".") and os.path.splitext(file)[1].lower() in IMAGE_SUFFIXES:
                names.append(os.path.join(relative, file))
    return sorted(names), folders


def _mtime(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return -1


def _read_sizes(root: Path, names: Sequence[str], progress: Callable[[int, int], None] | None) -> np.ndarray:
    """(n, 2) heights and widths; (0, 0) for what can't be read, so that one bad file does not stop the scan."""

    def size(name: str) -> tuple[int, int]:
        try:
            return image_size(root / name)
        except HatlibError:
            return 0, 0

    def sizes() -> Iterator[tuple[int, int]]:
        with ThreadPoolExecutor(min(16, 2 * (os.cpu_count() or 1))) as pool:
            for done, result in enumerate(pool.map(size, names), 1):
                if progress is not None:
                    progress(done, len(names))
                yield result

    return np.array(list(sizes()), np.int32).reshape(-1, 2)


def _cache_file(root: Path, cache: str | os.PathLike | None) -> Path:
    base = cache or os.environ.get("HATLIB_CACHE") or Path.home() / ".cache" / "hatlib"
    return Path(base) / "index" / f"{hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:24]}.npz"


def _load(file: Path) -> dict[str, Any] | None:
    """The kept index, or None if there is none that can be used."""
    try:
        with np.load(file, allow_pickle=False) as kept:
            if int(kept["version"]) != _VERSION:
                return None
            names = [os.fsdecode(name) for name in kept["names"].tobytes().split(b"\0")]
            folders = [os.fsdecode(name) for name in kept["folders"].tobytes().split(b"\0")]
            return {
                "names": names,
                "sizes": kept["sizes"],
                "folders": list(zip(folders, kept["mtimes"].tolist(), strict=True)),
            }
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None


def _save(file: Path, names: Sequence[str], sizes: np.ndarray, folders: Sequence[tuple[str, int]]) -> None:
    """Keeps an index; where that is not possible, the next time scans again."""

    def joined(strings: Iterable[str]) -> np.ndarray:
        return np.frombuffer(b"\0".join(map(os.fsencode, strings)), np.uint8)

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(file) as temporary, temporary.open("wb") as target:
            np.savez(
                target,
                version=_VERSION,
                names=joined(names),
                sizes=sizes,
                folders=joined(name for name, _ in folders),
                mtimes=np.array([mtime for _, mtime in folders], np.int64),
            )
    except (OSError, HatlibError):
        pass

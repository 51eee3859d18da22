"""The images of a training: those it learns from, and those it is measured on."""

from __future__ import annotations

import hashlib
from pathlib import Path

from hatlib.data import ImagePairs, TrainingPatches, benchmark_folders
from hatlib.errors import HatlibError
from hatlib.registry import model_info
from hatlib.training.config import Config

__all__ = ["fingerprint", "scale_of", "training_patches", "validation_data"]


def scale_of(config: Config) -> int:
    """Output size over input size."""
    return config.model.args.get("upscale", model_info(config.model.name).scale)


def training_patches(config: Config, scale: int) -> TrainingPatches:
    """The patches to learn from; images that can't be read are left out and noted."""
    data = config.data
    if data.hr is None:
        raise HatlibError("Say where the training images are: data.hr=DIR, and data.lr=DIR if there are LR images too.")
    options = dict(in_memory=data.cache, gray=data.gray, skip_unreadable=True)
    pairs = ImagePairs(data.hr, data.lr, scale=scale, files=data.files, **options)
    return TrainingPatches(
        pairs,
        data.patch,
        seed=config.seed,
        flip=data.flip,
        rotate=data.rotate,
        small=data.small,
        min_std=data.min_std,
        skip_unreadable=True,
    )


def fingerprint(patches: TrainingPatches) -> str:
    """A short hash of which images there are, wherever they are."""
    images, digest = patches.pairs.hr, hashlib.sha256()
    for name, (height, width) in zip(images, images.sizes.tolist(), strict=True):
        digest.update(f"{name} {height} {width}\n".encode())
    return digest.hexdigest()[:16]


def validation_data(config: Config, scale: int) -> dict[str, ImagePairs]:
    """The benchmarks of a configuration by name: the folder's, or its parent's where that is 'HR'.

    Images of the training folder that are kept out of the training are called 'validation'.
    """
    data = {}
    options = dict(scale=scale, in_memory=True, gray=config.data.gray)
    if config.val.files is not None:
        if config.data.hr is None:
            raise HatlibError("val.files names images of data.hr, which is missing.")
        own = config.data
        data["validation"] = ImagePairs(own.hr, own.lr, files=config.val.files, **options)
    for folder in config.val.folders:
        hr, lr = benchmark_folders(folder, scale)
        path = Path(folder).resolve()
        name = path.parent.name if path.name.lower() in ("hr", "gt") else path.name
        if name in data:
            raise HatlibError(f"Two of val.folders are called {name!r}; their results would have one name.")
        data[name] = ImagePairs(hr, lr, **options)
    return data

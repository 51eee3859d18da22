"""The images of a training: those it learns from, and those it is measured on."""

from __future__ import annotations

import hashlib

from hatlib.data import ImagePairs, TrainingPatches, open_benchmarks
from hatlib.errors import HatlibError
from hatlib.hub.resolve import resolve
from hatlib.networks import model_info
from hatlib.training.config import Config
from hatlib.training.initialization import untrained_model

__all__ = ["fingerprint", "scale_of", "training_patches", "validation_data"]


def scale_of(config: Config) -> int:
    """Output size over input size."""
    name, args = config.model.name, config.model.args
    if "upscale" in args:
        return args["upscale"]
    source = resolve(name)
    return model_info(name).scale if source.kind == "name" else untrained_model(name, args).upscale


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
    """The benchmarks of a configuration by name; 'validation' are images of data.hr that training leaves out."""
    options = dict(scale=scale, in_memory=True, gray=config.data.gray)
    data = open_benchmarks(config.val.folders, **options)
    if config.val.files is not None:
        own = config.data
        if own.hr is None or "validation" in data:
            raise HatlibError(
                "val.files names images of data.hr, which is missing, or a folder is called 'validation'."
            )
        data["validation"] = ImagePairs(own.hr, own.lr, files=config.val.files, **options)
    return data

"""What models there are, by name: `family[_size][_task]_xSCALE[.tag]`. The arch fixes the graph, the tag the weights.

Each family's file holds a table `pretrained` of its published weights above its entry points; `register_model` puts
the entry point into this registry and, with configuration entries made from that table, into timm's.
"""

import fnmatch
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from typing import Any

from timm.models import generate_default_cfgs, model_entrypoint
from timm.models import register_model as timm_register_model
from torch import nn

from hatlib.errors import HatlibError, near_names

__all__ = ["ModelInfo", "Weights", "list_models", "model_info", "register_model", "split_name"]

EntryPoint = Callable[..., nn.Module]


@dataclass(frozen=True, kw_only=True)
class Weights:
    """One published weight file.

    Attributes:
        file: name of the file, as its authors published it; without `url`, a file of this package's `weights` folder.
        sha256: of the file's bytes.
        url: where to download it.
        training_data: what it was trained on.
        metrics: PSNR in dB on Y by the paper's protocol, by benchmark.
        origin: who published it, and where.
        license: SPDX name, or what is known.
        note: anything else a user should know.
    """

    file: str
    sha256: str
    training_data: str
    origin: str
    license: str
    url: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    note: str = ""

    @property
    def packaged_path(self) -> str | None:
        """Path of the file within the installed package, or None if it is to be downloaded."""
        return None if self.url else str(resources.files("hatlib").joinpath("weights", self.file))


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What is known of a model without building it.

    Attributes:
        name: as asked for, `arch` or `arch.tag`.
        arch: name of the entry point.
        family: for example 'hat'.
        scale: output size over input size.
        task: 'sr', 'real', 'denoise_gray', ...
        module: the Python module of the entry point.
        weights: what `pretrained=True` loads, or None.
        tags: all published weights of the arch, the default first.
    """

    name: str
    arch: str
    family: str
    scale: int
    task: str
    module: str
    weights: Weights | None = None
    tags: Mapping[str, Weights] = field(default_factory=dict)


_models: dict[str, ModelInfo] = {}


def split_name(name: str) -> tuple[str, str]:
    """'hat_x4.real_gan' -> ('hat_x4', 'real_gan'); the tag is empty if there is none."""
    arch, _, tag = name.partition(".")
    return arch, tag


def register_model(
    fn: EntryPoint | None = None, *, scale: int | None = None, family: str | None = None, task: str = "sr"
) -> Any:
    """Registers an entry point `fn(pretrained=False, **kwargs)` under its name, here and in timm.

    Published weights are read from the table `pretrained` of the module that defines `fn`, a dict from 'arch.tag' to
    `Weights`; the first tag of an arch is its default.

    Args:
        fn: the entry point; may be left out, to use the decorator with arguments.
        scale: output size over input size; taken from the `_xN` at the end of the name if not given.
        family: the part of the name before the first underscore if not given.
        task: what the model is for.

    Raises:
        HatlibError: if the name tells no scale and none is given.
    """
    if fn is None:
        return lambda f: register_model(f, scale=scale, family=family, task=task)
    arch, module = fn.__name__, sys.modules[fn.__module__]
    if scale is None:
        match = re.search(r"_x(\d+)$", arch)
        if match is None:
            raise HatlibError(f"The name {arch!r} does not end in its scale ('_x4'); say register_model(scale=...).")
        scale = int(match[1])
    table: Mapping[str, Weights] = getattr(module, "pretrained", {})
    tags = {split_name(name)[1]: weights for name, weights in table.items() if split_name(name)[0] == arch}
    if not hasattr(module, "default_cfgs"):
        module.default_cfgs = {}  # timm reads the configuration entries from the module.
    module.default_cfgs |= generate_default_cfgs(
        {f"{arch}.{tag}": _timm_cfg(weights) for tag, weights in tags.items()} or {arch: _timm_cfg()}
    )
    timm_register_model(fn)
    _models[arch] = ModelInfo(
        name=arch,
        arch=arch,
        family=family or arch.split("_")[0],
        scale=scale,
        task=task,
        module=fn.__module__,
        weights=next(iter(tags.values()), None),
        tags=tags,
    )
    return fn


def list_models(
    filter: str = "*",
    *,
    family: str | None = None,
    scale: int | None = None,
    task: str | None = None,
    pretrained: bool = False,
) -> list[str]:
    """Names of registered models, sorted.

    Args:
        filter: a shell pattern, for example 'hat_*_x4'.
        family: only this family.
        scale: only this scale.
        task: only this task.
        pretrained: list `arch.tag` for each published weight file instead of the archs.
    """
    infos = [
        info
        for info in _models.values()
        if family in (None, info.family) and scale in (None, info.scale) and task in (None, info.task)
    ]
    names = [f"{i.arch}.{tag}" for i in infos for tag in i.tags] if pretrained else [i.arch for i in infos]
    return sorted((n for n in names if fnmatch.fnmatch(n, filter)), key=_natural_key)


def model_info(name: str) -> ModelInfo:
    """What is known of the model `name` ('hat_x4' or 'hat_x4.imagenet_ft_df2k').

    Raises:
        HatlibError: if the arch or the tag is unknown; names near ones.
    """
    arch, tag = split_name(name)
    if arch not in _models:
        raise HatlibError(f"Unknown model {arch!r}.{near_names(arch, _models)} hatlib.list_models() lists all.")
    info = _models[arch]
    if not tag:
        return info
    if tag not in info.tags:
        known = f"its tags are {', '.join(info.tags)}" if info.tags else "it has no published weights"
        raise HatlibError(f"Model {arch!r} has no weights tagged {tag!r}; {known}.")
    return replace(info, name=name, weights=info.tags[tag])


def entry_point(arch: str) -> EntryPoint:
    """The function that builds `arch`, which must be registered."""
    return model_entrypoint(arch)


def _timm_cfg(weights: Weights | None = None) -> dict[str, Any]:
    """timm's configuration entry of a restoration network: no classes, any input size, images in [0, 1]."""
    cfg: dict[str, Any] = dict(
        num_classes=0,
        input_size=(3, 64, 64),
        fixed_input_size=False,
        pool_size=None,
        crop_pct=1.0,
        interpolation="bicubic",
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        first_conv="conv_first",
        classifier=None,
    )
    if weights:
        cfg.update(license=weights.license, description=weights.training_data, origin_url=weights.origin)
        cfg.update(url=weights.url) if weights.url else cfg.update(file=weights.packaged_path)
    return cfg


def _natural_key(name: str) -> list[Any]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]

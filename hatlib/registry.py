"""What models there are, by name: `family[_size][_task]_xSCALE[.tag]`. The arch fixes the graph, the tag the weights.

Each family's file holds a table `pretrained` of its published weights above its entry points; `register_model` puts
the entry point into this registry and, with configuration entries made from that table, into timm's. Other packages
do the same from modules that they announce as entry points of the group `hatlib.models`; those are imported when a
name is not known yet, or when all are listed.
"""

import fnmatch
import functools
import inspect
import re
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib import metadata, resources
from typing import Any

from timm.models import generate_default_cfgs, model_entrypoint
from timm.models import register_model as timm_register_model
from torch import Tensor, nn

from hatlib.errors import HatlibError, similar_names

__all__ = [
    "ModelInfo",
    "Weights",
    "list_models",
    "model_info",
    "register_detector",
    "register_model",
    "split_name",
]

EntryPoint = Callable[..., nn.Module]
Detector = Callable[[Mapping[str, Tensor]], dict[str, Any] | None]

PLUGIN_GROUP = "hatlib.models"


@dataclass(frozen=True, kw_only=True)
class Weights:
    """One published weight file.

    Attributes:
        file: name of the file, as its authors published it; without `url`, a file of this package's `weights` folder.
        sha256: of the file's bytes.
        url: where to download it.
        size: bytes, where known.
        training_data: what it was trained on.
        metrics: published PSNR in dB on Y, by benchmark.
        ssim: published SSIM on Y, by benchmark.
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
    size: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    ssim: Mapping[str, float] = field(default_factory=dict)
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
        model_class: what the entry point builds, where it was said.
        model_args: the constructor arguments that make the arch, where they were said.
    """

    name: str
    arch: str
    family: str
    scale: int
    task: str
    module: str
    weights: Weights | None = None
    tags: Mapping[str, Weights] = field(default_factory=dict)
    model_class: type[nn.Module] | None = None
    model_args: Mapping[str, Any] = field(default_factory=dict)


_models: dict[str, ModelInfo] = {}
_detectors: dict[type[nn.Module], Detector] = {}


def split_name(name: str) -> tuple[str, str]:
    """'hat_x4.real_gan' -> ('hat_x4', 'real_gan'); the tag is empty if there is none."""
    arch, _, tag = name.partition(".")
    return arch, tag


def register_model(
    fn: EntryPoint | None = None,
    *,
    scale: int | None = None,
    family: str | None = None,
    task: str = "sr",
    model_class: type[nn.Module] | None = None,
    model_args: Mapping[str, Any] | None = None,
) -> Any:
    """Registers an entry point `fn(pretrained=False, **kwargs)` under its name, here and in timm.

    Published weights are read from the table `pretrained` of the module that defines `fn`, a dict from 'arch.tag' to
    `Weights`; the first tag of an arch is its default.

    Args:
        fn: the entry point; may be left out, to use the decorator with arguments.
        scale: output size over input size; taken from the `_xN` at the end of the name if not given.
        family: the part of the name before the first underscore if not given.
        task: what the model is for.
        model_class: what `fn` builds, so that an instance made without a name finds it.
        model_args: the constructor arguments that make the arch, so that weights are detected as its own.

    Raises:
        HatlibError: if the name tells no scale and none is given.
    """
    if fn is None:
        options = dict(scale=scale, family=family, task=task, model_class=model_class, model_args=model_args)
        return functools.partial(register_model, **options)
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
        {f"{arch}.{tag}": timm_cfg(weights) for tag, weights in tags.items()} or {arch: timm_cfg()}
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
        model_class=model_class,
        model_args=model_args or {},
    )
    return fn


def register_detector(cls: type[nn.Module]) -> Callable[[Detector], Detector]:
    """Registers how weights of a class are detected, for `hatlib.load_checkpoint`.

    The decorated function takes a state dict in any layout of the family, and gives the constructor arguments that
    the weights tell, or None if they are not of this family.
    """

    def register(fn: Detector) -> Detector:
        _detectors[cls] = fn
        return fn

    return register


def detect(state_dict: Mapping[str, Tensor]) -> tuple[type[nn.Module], dict[str, Any]] | None:
    """The class that has these weights, and the constructor arguments that they tell; None if no family knows them."""
    discover_plugins()
    for cls, recognition in _detectors.items():
        if (arguments := recognition(state_dict)) is not None:
            return cls, arguments
    return None


def find_arch(cls: type[nn.Module], arguments: Mapping[str, Any], ignore: tuple[str, ...] = ()) -> tuple[str, bool]:
    """The arch to build a network with, and whether it is that network.

    If no arch of the class has these constructor arguments, it is the plainest one of the same scale, else of any
    scale, to which the arguments must be given; an empty string if the class has no arch at all.

    Args:
        cls: the class.
        arguments: constructor arguments, all or those that are known.
        ignore: those that make no other network.
    """
    infos = sorted((i for i in _models.values() if i.model_class is cls), key=lambda i: (len(i.arch), i.arch))
    defaults = {p.name: p.default for p in inspect.signature(cls).parameters.values()}
    relevant = {name: to_tuples(value) for name, value in arguments.items() if name not in ignore}
    for info in infos:
        own = {**defaults, **info.model_args}
        if all(name in own and own[name] == value for name, value in relevant.items()):
            return info.arch, True
    infos.sort(key=lambda i: i.scale != arguments.get("upscale"))
    return (infos[0].arch if infos else ""), False


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
    discover_plugins()
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
        discover_plugins()
    if "/" in name:
        raise HatlibError(
            f"Unknown model {name!r}. A repository of the Hub is 'hf-hub:{name}', a folder 'local-dir:...'."
        )
    if arch not in _models:
        raise HatlibError(f"Unknown model {arch!r}.{similar_names(arch, _models)} hatlib.list_models() lists all.")
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


def build(name: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Calls the entry point of `name`; its tag says which weights. Arguments that are None count as not given."""
    arch, tag = split_name(model_info(name).name)
    kwargs = {key: value for key, value in kwargs.items() if value is not None}
    if tag:
        kwargs.setdefault("pretrained_cfg", tag)
    return entry_point(arch)(pretrained=pretrained, **kwargs)


def registered_build(arch: str, saved: Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> nn.Module:
    """Builds a network of the family of `arch` from all its constructor arguments, as a configuration file has them.

    Unlike the name alone, they may ask for a scale that no arch has.

    Args:
        arch: registered name.
        saved: the arguments of the network that was saved.
        overrides: those that are to differ from it.
    """
    arguments = {**saved, **(overrides or {})}
    scale = arguments.get("upscale", model_info(arch).scale)
    if (sibling := re.sub(r"_x\d+$", f"_x{scale}", arch)) in _models:
        arch = sibling
    # An explicit configuration tells the builder that the arguments, not the name, say what is built; the arguments of
    # the saved network tell it what the weights were made for.
    options = {"pretrained_model_args": dict(saved)} if overrides else {}
    cfg = timm_cfg(in_chans=arguments.get("in_chans", 3))
    return entry_point(arch)(pretrained=False, pretrained_cfg=cfg, **options, **arguments)


def known_hashes() -> set[str]:
    """The SHA-256 of all published weight files."""
    return {weights.sha256 for info in _models.values() for weights in info.tags.values()}


@functools.cache
def discover_plugins() -> None:
    """Imports, once, the modules that installed packages announce as entry points of the group `hatlib.models`."""
    for plugin in metadata.entry_points(group=PLUGIN_GROUP):
        try:
            plugin.load()
        except Exception as error:  # whatever a stranger's module raises: our models must stay usable
            warnings.warn(f"The hatlib plugin {plugin.value!r} could not be imported: {error}", stacklevel=2)


def timm_cfg(weights: Weights | None = None, in_chans: int = 3) -> dict[str, Any]:
    """timm's configuration entry of a restoration network: no classes, any input size, images in [0, 1]."""
    cfg: dict[str, Any] = dict(
        num_classes=0,
        input_size=(in_chans, 64, 64),
        fixed_input_size=False,
        pool_size=None,
        crop_pct=1.0,
        interpolation="bicubic",
        mean=(0.0,) * in_chans,
        std=(1.0,) * in_chans,
        first_conv="conv_first",
        classifier=None,
    )
    if weights:
        cfg.update(license=weights.license, description=weights.training_data, origin_url=weights.origin)
        cfg.update(url=weights.url) if weights.url else cfg.update(file=weights.packaged_path)
    return cfg


def to_tuples(value: Any) -> Any:
    """Lists, such as JSON gives, as tuples."""
    return tuple(map(to_tuples, value)) if isinstance(value, (list, tuple)) else value


def _natural_key(name: str) -> list[Any]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]

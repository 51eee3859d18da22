"""Registered networks: `family[_size][_task]_xSCALE[.tag]`. The arch fixes the network, the tag names the weights.

Each family's file has a table of constructor arguments and a table of published weights, and one entry point per name
that is decorated with `register_model`. The decorator puts the entry point into this registry and into timm's.
"""

import fnmatch
import functools
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from typing import Any

from timm.models import generate_default_cfgs
from timm.models import register_model as timm_register_model
from torch import nn

from hatlib.errors import HatlibError, first_line, similar_names
from hatlib.registry import Registry, constructor_parameters, registries, to_tuples

__all__ = [
    "CLASSIFIER_OPTIONS",
    "ModelInfo",
    "Weights",
    "build",
    "build_saved",
    "check_arguments",
    "known_hashes",
    "list_models",
    "model_info",
    "networks",
    "register_model",
    "split_name",
    "timm_cfg",
]

EntryPoint = Callable[..., nn.Module]


@dataclass(frozen=True, kw_only=True)
class Weights:
    """One published weight file.

    Args:
        file: name of the file, as its authors published it; without `url`, a file in this package's folder `weights`.
        sha256: SHA-256 of the file.
        training_data: what the network was trained on.
        origin: who published the file, and where.
        license: SPDX name, or what is known.
        url: where to download the file.
        size: bytes, where known.
        metrics: published PSNR in dB on Y, by benchmark.
        ssim: published SSIM on Y, by benchmark.
        degradation: what the network was trained to undo: 'bicubic', 'real', 'noise' or 'jpeg'.
        gan: whether the training had an adversarial loss, so that details are invented.
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
    degradation: str = "bicubic"
    gan: bool = False
    note: str = ""

    @property
    def packaged_path(self) -> str | None:
        """Path of the file in the installed package, or None if the file has to be downloaded."""
        return None if self.url else str(resources.files("hatlib").joinpath("weights", self.file))


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What is known about a registered network without building it.

    Args:
        name: the name that was asked for, `arch` or `arch.tag`.
        arch: name of the entry point.
        family: for example 'hat'.
        size: name without the scale, for example 'hat_s'.
        scale: output size over input size.
        task: 'sr', 'real', 'denoise_gray', ...
        module: the Python module of the entry point.
        entry_point: the registered function.
        weights: what `pretrained=True` loads, or None.
        tags: all published weights of the arch, the default first.
        model_class: the class that the entry point builds, or None if the decorator got no class.
        model_args: constructor arguments that make the arch.
    """

    name: str
    arch: str
    family: str
    size: str
    scale: int
    task: str
    module: str
    entry_point: EntryPoint
    weights: Weights | None = None
    tags: Mapping[str, Weights] = field(default_factory=dict)
    model_class: type[nn.Module] | None = None
    model_args: Mapping[str, Any] = field(default_factory=dict)

    @property
    def siblings(self) -> dict[int, "ModelInfo"]:
        """The same size at all scales, by scale."""
        infos = map(networks.get, networks.names())
        same = [i for i in infos if (i.size, i.task, i.module) == (self.size, self.task, self.module)]
        return {info.scale: info for info in sorted(same, key=lambda info: info.scale)}


# What timm passes to every model and writes for it, and a network without classes does not use.
CLASSIFIER_OPTIONS = ("num_classes", "global_pool")

networks: Registry[ModelInfo] = Registry("model", ["hatlib.models"])
registries["model"] = networks


def split_name(name: str) -> tuple[str, str]:
    """'hat_x4.real_gan' -> ('hat_x4', 'real_gan'); the tag is empty if there is none."""
    arch, _, tag = name.partition(".")
    return arch, tag


def register_model(
    cls: Any = None,
    args: Mapping[str, Any] | None = None,
    *,
    weights: Mapping[str, Weights] | None = None,
    scale: int | None = None,
    family: str | None = None,
    task: str = "sr",
) -> Any:
    """Decorator that registers an entry point `fn(pretrained=False, **kwargs)` under its name, here and in timm.

    Args:
        cls: the class that the entry point builds, so that `build_model`, saved files and weight detection find the
            arch. The bare `@register_model` is for an entry point that builds anything else.
        args: constructor arguments that make the arch, without `upscale`.
        weights: published weights by 'arch.tag', the first tag of an arch being its default; the table may hold other
            archs too.
        scale: output size over input size; taken from `_xN` at the end of the name if not given.
        family: the part of the name before the first underscore if not given.
        task: what the network is for.

    Raises:
        HatlibError: if the name has no scale and none is given, the name is taken, or the constructor lacks a
            parameter that hatlib needs.

    Example:
        >>> import hatlib
        >>> @hatlib.register_model(hatlib.models.HAT, dict(embed_dim=24, depths=(2,), num_heads=(2,), squeeze_factor=4))
        ... def hat_nano_x2(pretrained=False, **kwargs):
        ...     return hatlib.models.build_model("hat_nano_x2", pretrained, **kwargs)
        >>> hatlib.create_model("hat_nano_x2").embed_dim
        24
    """
    options = dict(weights=weights, scale=scale, family=family, task=task)
    if cls is None or isinstance(cls, type):
        return functools.partial(_register, cls=cls, args=args or {}, **options)
    return _register(cls, cls=None, args={}, **options)


def _register(
    fn: EntryPoint,
    *,
    cls: type[nn.Module] | None,
    args: Mapping[str, Any],
    weights: Mapping[str, Weights] | None,
    scale: int | None,
    family: str | None,
    task: str,
) -> EntryPoint:
    arch, match = fn.__name__, re.search(r"_x(\d+)$", fn.__name__)
    if scale is None and match is None:
        raise HatlibError(f"The name {arch!r} does not end in its scale ('_x4'); use register_model(scale=...).")
    scale = int(match[1]) if scale is None else scale
    if cls is not None:
        args = {**args, **_checked_scale(cls, arch, scale)}
    tags = {split_name(name)[1]: w for name, w in (weights or {}).items() if split_name(name)[0] == arch}
    info = ModelInfo(
        name=arch,
        arch=arch,
        family=family or arch.split("_")[0],
        size=arch.removesuffix(f"_x{scale}"),
        scale=scale,
        task=task,
        module=fn.__module__,
        entry_point=fn,
        weights=next(iter(tags.values()), None),
        tags=tags,
        model_class=cls,
        model_args=args,
    )
    networks.add(arch, info, owner=fn.__module__)
    # timm reads the configuration entries from the module of the entry point.
    module = sys.modules[fn.__module__]
    if not hasattr(module, "default_cfgs"):
        module.default_cfgs = {}
    cfgs = {f"{arch}.{tag}": timm_cfg(w) for tag, w in tags.items()} or {arch: timm_cfg()}
    module.default_cfgs |= generate_default_cfgs(cfgs)
    timm_register_model(fn)
    return fn


def _checked_scale(cls: type[nn.Module], arch: str, scale: int) -> dict[str, int]:
    """The constructor argument for the scale, after a check that the constructor has what hatlib passes."""
    for needed in ("upscale", "in_chans"):
        if needed not in constructor_parameters(cls):
            raise HatlibError(
                f"{cls.__name__} of the model {arch!r} needs a constructor parameter {needed}=, which saved models, "
                "recipes and commands pass."
            )
    return {"upscale": scale}


def build(name: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Builds a registered network by calling its entry point; the tag selects the weights, and None means not given."""
    info, (_, tag) = model_info(name), split_name(name)
    kwargs = {name: value for name, value in kwargs.items() if value is not None}
    if tag:
        kwargs.setdefault("pretrained_cfg", tag)
    model = info.entry_point(pretrained=pretrained, **kwargs)
    if (found := getattr(model, "upscale", info.scale)) != info.scale:
        raise HatlibError(f"The entry point {info.arch} returned a network of scale {found}, not {info.scale}.")
    return model


def build_saved(arch: str, saved: Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> nn.Module:
    """Builds a network from the constructor arguments of a saved one, with new weights.

    Unlike a name, saved arguments may have a scale that no arch has.

    Args:
        arch: registered name of the saved network.
        saved: its constructor arguments, those of the arch where they are missing.
        overrides: arguments that replace saved ones.

    Raises:
        HatlibError: if the arch or an argument is unknown.
    """
    info, overrides = model_info(arch), dict(overrides or {})
    arguments = {name: v for name, v in {**saved, **overrides}.items() if name not in CLASSIFIER_OPTIONS}
    info = info.siblings.get(arguments.get("upscale", info.scale), info)
    if info.model_class is None:
        return info.entry_point(pretrained=False, **arguments)
    arguments = {**info.model_args, **arguments}
    check_arguments(info, arguments)
    trained = {**info.model_args, **saved}
    has_mean = info.model_class is not None and "mean" in constructor_parameters(info.model_class)
    if has_mean and "mean" not in overrides and arguments.get("in_chans", 3) != trained.get("in_chans", 3):
        arguments["mean"] = None  # the saved mean has one value per saved channel
    try:
        model = info.model_class(**{name: to_tuples(value) for name, value in arguments.items()})
    except TypeError as error:
        raise HatlibError(f"{info.model_class.__name__} does not take these arguments: {first_line(error)}.") from error
    model.pretrained_cfg = {**timm_cfg(in_chans=model.in_chans), "architecture": info.arch}
    return model


def check_arguments(info: ModelInfo, arguments: Mapping[str, Any], also: Sequence[str] = ()) -> None:
    """Refuses arguments that the constructor of a network does not have.

    Raises:
        HatlibError: naming the argument and similar ones.
    """
    known = {*constructor_parameters(info.model_class or info.entry_point), *also}
    for name in arguments.keys() - known:
        raise HatlibError(f"{info.arch} has no option {name!r}.{similar_names(name, known)}")


def list_models(
    filter: str = "*",
    *,
    family: str | None = None,
    scale: int | None = None,
    task: str | None = None,
    pretrained: bool = False,
) -> list[str]:
    """Names of registered networks, sorted.

    Args:
        filter: a shell pattern, for example 'hat_*_x4'.
        family: only this family.
        scale: only this scale.
        task: only this task.
        pretrained: list `arch.tag` for each published weight file instead of the archs.

    Example:
        >>> import hatlib
        >>> hatlib.list_models("hat_t*")
        ['hat_t_x2', 'hat_t_x4']
    """
    infos = [
        info
        for info in map(networks.get, networks.names())
        if family in (None, info.family) and scale in (None, info.scale) and task in (None, info.task)
    ]
    names = [f"{i.arch}.{tag}" for i in infos for tag in i.tags] if pretrained else [i.arch for i in infos]
    return sorted((n for n in names if fnmatch.fnmatch(n, filter)), key=_natural_key)


def model_info(name: str) -> ModelInfo:
    """What is known about the network `name` ('hat_x4' or 'hat_x4.imagenet_ft_df2k').

    Raises:
        HatlibError: if the arch or the tag is unknown; the message lists similar names.

    Example:
        >>> import hatlib
        >>> hatlib.model_info("hat_t_x4").scale
        4
    """
    arch, tag = split_name(name)
    if "/" in name:
        raise HatlibError(
            f"Unknown model {name!r}. A repository of the Hub is 'hf-hub:{name}', a folder 'local-dir:...'."
        )
    if arch not in networks:
        hint = similar_names(arch, networks.names())
        raise HatlibError(f"Unknown model {arch!r}.{hint} hatlib.list_models() lists all.")
    info = networks.get(arch)
    if not tag:
        return info
    if tag not in info.tags:
        known = f"its tags are {', '.join(info.tags)}" if info.tags else "it has no published weights"
        raise HatlibError(f"Model {arch!r} has no weights tagged {tag!r}; {known}.")
    return replace(info, name=name, weights=info.tags[tag])


def known_hashes() -> set[str]:
    """SHA-256 of all published weight files."""
    return {weights.sha256 for info in map(networks.get, networks.names()) for weights in info.tags.values()}


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


def _natural_key(name: str) -> list[Any]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]

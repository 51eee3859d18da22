"""Building registered models as timm does, with published weights that were verified first."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from timm.models import build_model_with_cfg

from hatlib.checkpoint import unwrap_state_dict
from hatlib.errors import HatlibError, similar_names
from hatlib.models.base import RestorationModel
from hatlib.registry import Weights, list_models, model_info, register_model, to_tuples

__all__ = ["build_model", "register_arch"]

# What timm passes to every model and a network without classes has no use for.
_CLASSIFIER_OPTIONS = ("num_classes", "global_pool")
_BUILDER_OPTIONS = inspect.signature(build_model_with_cfg).parameters.keys()
_TIMM_OPTIONS = {
    *_CLASSIFIER_OPTIONS,
    *_BUILDER_OPTIONS,
    "pretrained_model_args",
    "features_only",
    "out_indices",
    "feature_cls",
}
_SOURCES = {"file", "url", "hf_hub_id", "state_dict"}


def build_model(cls: type[RestorationModel], arch: str, pretrained: bool = False, **kwargs: Any) -> RestorationModel:
    """Builds a registered arch as timm does, with weights that were verified first. Entry points call it.

    Weights for another number of channels than `in_chans` and `out_chans` are adapted (`hatlib.models._adapt`).

    Args:
        cls: the class.
        arch: registered name.
        pretrained: load the published weights, those of the tag that `pretrained_cfg` names or the default ones.
        **kwargs: constructor arguments, and those of timm's `build_model_with_cfg`. An explicit configuration as
            `pretrained_cfg` means that the arguments are those of a saved model, and may have another scale.

    Raises:
        HatlibError: if `upscale` contradicts the name, there are no such weights, or the file is not what it should be.
    """
    info = model_info(arch)
    cfg = kwargs.get("pretrained_cfg")
    named = cfg is None or isinstance(cfg, str)
    if kwargs.setdefault("upscale", info.scale) != info.scale and named:
        others = list_models(f"{arch.rpartition('_x')[0]}_x*")
        raise HatlibError(
            f"{arch} has scale {info.scale}, but upscale={kwargs['upscale']} was asked for; take one of "
            f"{', '.join(others)}."
        )
    known = inspect.signature(cls).parameters.keys() | _TIMM_OPTIONS
    for option in kwargs.keys() - known:
        raise HatlibError(f"{arch} has no option {option!r}.{similar_names(option, known)}")
    source_args = kwargs.get("pretrained_model_args") or {}
    if "pretrained_model_args" not in _BUILDER_OPTIONS:
        kwargs.pop("pretrained_model_args", None)
    if kwargs.get("in_chans", 3) != source_args.get("in_chans", 3) and kwargs.get("mean") == source_args.get("mean"):
        kwargs["mean"] = None  # It has a value for each channel there was; the one to go with the weights follows.

    overlay = dict(kwargs.pop("pretrained_cfg_overlay", None) or {})
    weights = None
    if named:
        info = model_info(f"{arch}.{cfg}" if cfg else arch)
        if pretrained and not overlay.keys() & _SOURCES:
            weights, overlay["file"] = info.weights, _verified_file(info.weights, arch)
    # The filter below adapts the first convolution: timm must not think that it has to.
    overlay.setdefault("input_size", (kwargs.get("in_chans", 3), 64, 64))
    model = build_model_with_cfg(
        cls,
        arch,
        pretrained,
        pretrained_cfg_overlay=overlay,
        pretrained_filter_fn=_to_model,
        feature_cfg=dict(feature_cls="getter", out_indices=None),
        kwargs_filter=_CLASSIFIER_OPTIONS,
        **{name: to_tuples(value) for name, value in kwargs.items()},
    )
    if weights:
        model.loaded_weights = weights
    return model


def register_arch(
    cls: type[RestorationModel], name: str, scale: int, arguments: Mapping[str, Any], doc: str, task: str = "sr"
) -> Callable[..., RestorationModel]:
    """Registers `name`_x`scale` of a family, and gives its entry point, which belongs into the family's module.

    Args:
        cls: the class, defined in that module.
        name: of the size.
        scale: output size over input size.
        arguments: constructor arguments of the size.
        doc: what it is, for the entry point's docstring.
        task: what the model is for.
    """
    arch = f"{name}_x{scale}"

    def entry_point(pretrained: bool = False, **kwargs: Any) -> RestorationModel:
        return build_model(cls, arch, pretrained, **{**arguments, **kwargs})

    entry_point.__name__ = entry_point.__qualname__ = arch
    entry_point.__module__ = cls.__module__
    entry_point.__doc__ = f"{doc} at x{scale}; `**kwargs` go to `{cls.__name__}`."
    return register_model(entry_point, task=task, model_class=cls, model_args={**arguments, "upscale": scale})


def _to_model(state_dict: dict[str, Any], model: RestorationModel) -> dict[str, Any]:
    return model.adapt_state_dict(model.convert_state_dict(unwrap_state_dict(state_dict)))


def _verified_file(weights: Weights | None, arch: str) -> str:
    """Path of a weight file whose bytes are those that were published."""
    if weights is None:
        known = ", ".join(list_models(f"{arch.partition('_')[0]}_*", pretrained=True)) or "none of its family"
        raise HatlibError(f"There are no pretrained weights for {arch}; there are for {known}.")
    from hatlib.hub.download import fetch_weights

    return str(fetch_weights(weights))

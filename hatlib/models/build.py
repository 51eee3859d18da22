"""Building registered networks as timm does, with published weights that are verified first."""

import inspect
from typing import Any

from timm.models import build_model_with_cfg

from hatlib.checkpoint import check_fit, unwrap_state_dict
from hatlib.errors import HatlibError
from hatlib.models.base import ImageModel
from hatlib.networks import CLASSIFIER_OPTIONS, Weights, check_arguments, list_models, model_info
from hatlib.registry import constructor_parameters, to_tuples

__all__ = ["build_model"]

_BUILDER_OPTIONS = inspect.signature(build_model_with_cfg).parameters.keys()
_TIMM_OPTIONS = (*CLASSIFIER_OPTIONS, *_BUILDER_OPTIONS, "pretrained_model_args", "features_only", "out_indices")
_SOURCES = {"file", "url", "hf_hub_id", "state_dict"}


def build_model(arch: str, pretrained: bool = False, **kwargs: Any) -> Any:
    """Builds a registered network through timm's builder. Entry points call it.

    The class and the constructor arguments are those that `register_model` was given. Weights for other channel counts
    than `in_chans` and `out_chans` are adapted (`RestorationModel.adapt_state_dict`).

    Args:
        arch: registered name.
        pretrained: load the published weights, of the tag in `pretrained_cfg` or the default ones.
        **kwargs: constructor arguments that replace those of the arch, and timm's options (`features_only`,
            `pretrained_cfg`, `pretrained_cfg_overlay`, ...). timm passes a configuration as `pretrained_cfg` for a
            saved model, whose arguments may have another scale than the name.

    Returns:
        The network, or timm's wrapper for `features_only`.

    Raises:
        HatlibError: if an argument is unknown, `upscale` contradicts the name, there are no such weights, or the file
            is not the published one.

    Example:
        >>> from hatlib.models import build_model
        >>> build_model("hat_t_x4", in_chans=1).in_chans
        1
    """
    info, cfg = model_info(arch), kwargs.get("pretrained_cfg")
    if info.model_class is None:
        raise HatlibError(f"{arch} was registered without its class: use @register_model(Class, args).")
    check_arguments(info, kwargs, _TIMM_OPTIONS)
    named = cfg is None or isinstance(cfg, str)
    if named and kwargs.get("upscale", info.scale) != info.scale:
        names = ", ".join(sibling.arch for sibling in info.siblings.values())
        raise HatlibError(f"{arch} has scale {info.scale}, got upscale={kwargs['upscale']}; take one of {names}.")
    kwargs = {**info.model_args, **kwargs}
    in_chans = kwargs.get("in_chans", constructor_parameters(info.model_class)["in_chans"].default)
    source_args = kwargs.get("pretrained_model_args") or {}
    if "pretrained_model_args" not in _BUILDER_OPTIONS:
        kwargs.pop("pretrained_model_args", None)
    has_mean = "mean" in constructor_parameters(info.model_class)
    other_channels = kwargs.get("in_chans", 3) != source_args.get("in_chans", 3)
    if has_mean and other_channels and kwargs.get("mean") == source_args.get("mean"):
        kwargs["mean"] = None  # it has one value per saved channel; the mean that belongs to the weights follows

    overlay = dict(kwargs.pop("pretrained_cfg_overlay", None) or {})
    weights = None
    if named and pretrained and not overlay.keys() & _SOURCES:
        weights = model_info(f"{arch}.{cfg}" if cfg else arch).weights
        overlay["file"] = _verified_file(weights, arch)
    # The filter below adapts the first convolution: timm must not do it too.
    overlay.setdefault("input_size", (in_chans, 64, 64))
    model = build_model_with_cfg(
        info.model_class,
        arch,
        pretrained,
        pretrained_cfg_overlay=overlay,
        pretrained_filter_fn=_to_model,
        feature_cfg=dict(feature_cls="getter", out_indices=None),
        kwargs_filter=CLASSIFIER_OPTIONS,
        **{name: to_tuples(value) for name, value in kwargs.items()},
    )
    if weights:
        model.loaded_weights = weights
    return model


def _to_model(checkpoint: dict[str, Any], model: ImageModel) -> dict[str, Any]:
    """Weights that timm has read, in the layout and with the channels of the model."""
    state_dict = model.convert_state_dict(unwrap_state_dict(checkpoint))
    if hasattr(model, "adapt_state_dict"):
        source_args = getattr(model, "pretrained_model_args", None) or {}
        state_dict, mean = model.adapt_state_dict(state_dict, source_args.get("mean"))
        check_fit(model, state_dict, "pretrained weights")
        if mean is not None:
            model.set_mean(mean)
    return state_dict


def _verified_file(weights: Weights | None, arch: str) -> str:
    """Path of a weight file whose bytes are the published ones."""
    if weights is None:
        known = ", ".join(list_models(f"{arch.partition('_')[0]}_*", pretrained=True)) or "none of its family"
        raise HatlibError(f"There are no pretrained weights for {arch}; there are for {known}.")
    from hatlib.hub.download import fetch_weights

    return str(fetch_weights(weights))

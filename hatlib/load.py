"""Models from every source: `create_model` builds by name, `load` returns a model that is ready to use."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hatlib.checkpoint import UnknownArchitectureError, load_weights, read_state_dict
from hatlib.errors import HatlibError
from hatlib.hub import PretrainedModel, load_saved, load_source
from hatlib.hub.resolve import Source, import_function, resolve
from hatlib.models import Bicubic
from hatlib.networks import build

__all__ = ["create_model", "load"]


def create_model(
    name: str, pretrained: bool = False, *, checkpoint_path: str | Path | None = None, **kwargs: Any
) -> nn.Module:
    """Builds a registered or a saved model, in timm's way.

    Args:
        name: `arch`, or `arch.tag` to name the weights: 'hat_s_x4', 'hat_x4.real_gan'; or a saved model, as a
            repository of the Hub, 'hf-hub:org/repo' or 'hf-hub:org/repo@revision', or a directory, 'local-dir:path'.
        pretrained: load the weights: those of the tag, of the arch's default tag, or those that were saved.
        checkpoint_path: a weight file to load instead (.pth, .safetensors, ...; see `hatlib.checkpoint`).
        **kwargs: constructor arguments that differ from the arch's, for example `in_chans=1`, to which weights are
            adapted; None means not given.

    Raises:
        HatlibError: if the name, an argument or a file is wrong; the message says what to do.

    Example:
        >>> import hatlib
        >>> hatlib.create_model("hat_t_x4", in_chans=1).in_chans
        1
    """
    if pretrained and checkpoint_path:
        raise HatlibError("Give either pretrained=True or checkpoint_path=..., not both: each brings its own weights.")
    kwargs = {key: value for key, value in kwargs.items() if value is not None}
    saved = name.startswith(("hf-hub:", "local-dir:"))
    model = load_saved(name, pretrained, **kwargs) if saved else build(name, pretrained, **kwargs)
    if checkpoint_path:
        load_weights(model, checkpoint_path, adapt=bool(kwargs.keys() & {"in_chans", "out_chans"}))
    return model


def load(
    source: str | os.PathLike | nn.Module,
    *,
    scale: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
    strict: bool = True,
    ema: bool | None = None,
    **overrides: Any,
) -> nn.Module:
    """Loads a model from any source, with its weights, in eval mode.

    The architecture of a weight file is detected. Arguments that weights cannot reveal (for HAT conv_scale, img_range,
    mean and qk_scale) are read from the header of a file written by hatlib. For other files they take the published
    values, and a warning says so unless the file is a published one. A network that does not belong to a family of
    hatlib is loaded by spandrel (the extra `spandrel`) as a `hatlib.engines.ForeignModel`.

    Args:
        source: a registered name ('hat_x4', 'hat_x4.real_gan'), a size whose scale `scale` gives ('hat'), a repository
            of the Hub ('hf-hub:org/repo@revision'), a saved directory ('local-dir:path' or the path), a weight file
            (.safetensors, .pth, .pt, .ckpt, .bin), an ONNX model (.onnx), a function that returns a network
            ('package.module:function'), 'bicubic', or a network.
        scale: the scale of a size or of 'bicubic'; for other sources the scale that the model is expected to have.
        device: where to put the model.
        dtype: type of the weights; float32 if None, as saved if 'auto'.
        strict: refuse weights that are not exactly the model's; otherwise what is skipped is logged.
        ema: of a training checkpoint take the averaged weights (True) or the others (False); None prefers the averaged.
        **overrides: constructor arguments that replace those of the source. Another `in_chans` or `out_chans` adapts
            the first and last convolution; another `upscale` gives a new, untrained head and a warning.

    Returns:
        The model: (B, in_chans, H, W) -> (B, out_chans, scale * H, scale * W).

    Raises:
        HatlibError: if there is no such model, it has no weights, or an option does not apply to the source.

    Example:
        >>> import hatlib
        >>> hatlib.load("hat_t", scale=4).upscale
        4
        >>> hatlib.load("bicubic", scale=3).upscale
        3
    """
    saved_dtype = None
    if isinstance(source, nn.Module):
        _refuse(f"the network {type(source).__name__}", ema=ema, **overrides)
        model = source
    else:
        resolved = resolve(source, scale=scale)
        if resolved.kind in ("onnx", "function", "bicubic"):
            wanted = None if dtype == "auto" else dtype
            model = _load_without_weights(resolved, scale, dtype=wanted, ema=ema, **overrides)
        else:
            model, saved_dtype = _load_weights(resolved, strict, ema, overrides)
    expected, found = overrides.get("upscale", scale), getattr(model, "upscale", None)
    if expected is not None and found is None:
        if model is source:
            raise HatlibError(f"{type(source).__name__} does not declare its scale; set its attribute `upscale`.")
        model.upscale = expected
    elif expected is not None and found != expected:
        raise HatlibError(
            f"{source!r} has scale {found}, got scale={expected}; upscale={expected} gives it a new head."
        )
    dtype = saved_dtype if dtype == "auto" else dtype
    return (model if device is None and dtype is None else model.to(device=device, dtype=dtype)).eval()


def _load_weights(
    source: Source, strict: bool, ema: bool | None, overrides: dict[str, Any]
) -> tuple[nn.Module, torch.dtype | None]:
    try:
        return load_source(PretrainedModel, source, strict=strict, ema=ema, overrides=overrides)
    except UnknownArchitectureError:
        from hatlib.engines import load_foreign

        return load_foreign(read_state_dict(source.place, ema), source.text, overrides), None


def _load_without_weights(source: Source, scale: int | None, **options: Any) -> nn.Module:
    """An ONNX model, the network that a function returns, or bicubic interpolation."""
    if source.kind == "onnx":
        from hatlib.engines import OnnxModel

        _refuse(f"the ONNX model {source.text!r}", **options)
        return OnnxModel(source.place)
    if source.kind == "bicubic":
        _refuse("bicubic interpolation", **options)
        if scale is None:
            raise HatlibError("Bicubic interpolation has no scale of its own: pass scale= (--scale in commands).")
        return Bicubic(scale)
    _refuse(f"the function {source.text!r}", ema=options.pop("ema"))
    options.pop("dtype")  # the network is converted when it is there
    model = import_function(source.place)(**options)
    if not isinstance(model, nn.Module):
        raise HatlibError(f"{source.text!r} returns a {type(model).__name__}, not a network (torch.nn.Module).")
    return model


def _refuse(what: str, **options: Any) -> None:
    """Raises for an option that does not apply to a source."""
    if given := [name for name, value in options.items() if value is not None]:
        raise HatlibError(f"{given[0]}= does not apply to {what}; leave it out.")

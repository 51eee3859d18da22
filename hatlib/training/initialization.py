"""The model as a training starts with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from hatlib.blocks.heads import known_names
from hatlib.checkpoint import (
    conflicting_arguments,
    format_arguments,
    load_state_dict,
    read_state_dict,
    recorded_arguments,
)
from hatlib.errors import HatlibError
from hatlib.hub.resolve import resolve, weights_path
from hatlib.load import create_model, load
from hatlib.training.config import ModelConfig

__all__ = ["init_as_interpolation", "initial_model"]


def untrained_model(name: str, args: Mapping[str, Any]) -> nn.Module:
    """Builds the network `model.name` with new weights: a registered name, or what 'module:function' returns.

    Raises:
        HatlibError: If the name or an argument is wrong, or the network does not have what a training needs.
    """
    if resolve(name).kind != "function":
        return create_model(name, **args)
    model = load(name, **args)
    if missing := [a for a in ("upscale", "in_chans", "out_chans", "save_pretrained") if not hasattr(model, a)]:
        raise HatlibError(
            f"The network of model.name={name!r} has no {missing[0]}; derive it from hatlib.models.RestorationModel or "
            "hatlib.hub.PretrainedModel."
        )
    return model


def initial_model(config: ModelConfig) -> tuple[nn.Module, str]:
    """Builds the model of a configuration, with the weights it starts from.

    Returns:
        The model, and in words what it starts from.

    Raises:
        HatlibError: If the name, an argument or the weights are not right.
    """
    model = untrained_model(config.name, config.args)
    if config.interpolate:
        init_as_interpolation(model)
    origin = "interpolation" if config.interpolate else "random weights"
    if config.init is not None:
        origin = _load(model, config.init)
    if config.grad_checkpointing:
        model.set_grad_checkpointing(True)
    return (model.to(memory_format=torch.channels_last) if config.channels_last else model), origin


def _load(model: nn.Module, init: str) -> str:
    """Loads all that fits; what must change, such as the head for another scale, stays new and is told."""
    file = weights_path(resolve(init))
    published = read_state_dict(file)
    conflicts = conflicting_arguments(model, file, published)
    weights = model.convert_state_dict(published)
    mean = recorded_arguments(model, file, published).get("mean")
    report = load_state_dict(model, weights, init, strict=False, adapt=True, source_mean=mean)
    own = set(getattr(model, "head_names", ()))
    trunk = {name.partition(".")[0] for name in model.state_dict()} - own
    head = own | (known_names() - trunk)
    differing = (*report.missing, *report.mismatched, *report.unexpected)
    if odd := [name for name in differing if name.partition(".")[0] not in head]:
        raise HatlibError(
            f"{init!r} (model.init) does not fit {type(model).__name__} as it was configured, beyond its head: "
            f"{len(odd)} parameters, such as {odd[0]}. Start from weights of the same size."
        )
    # The mean comes along with the weights.
    others = {n: v for n, v in conflicts.items() if n != "mean"}
    if others:
        raise HatlibError(
            f"{init!r} (model.init) is for a network with {format_arguments(others)}, which its weights alone do "
            "not reveal: set the same values in model.args."
        )
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    fitted = [name for name in report.loaded if name in weights and weights[name].shape != shapes[name]]
    changes = [
        (names, what)
        for names, what in (
            ((*report.missing, *report.mismatched), "new, untrained"),
            (fitted, f"fitted to {model.in_chans} and {model.out_chans} channels:"),
        )
        if names
    ]
    notes = [f"{what} {', '.join(sorted({n.rpartition('.')[0] for n in names}))}" for names, what in changes]
    return ", with ".join([init, *notes])


@torch.no_grad()
def init_as_interpolation(model: nn.Module) -> None:
    """Initializes the convolutions around the trunk so that the untrained network interpolates its input.

    Six channels carry the image and its negative from `conv_first` to `conv_last` (in pairs, since
    leaky(x) - leaky(-x) is linear), and each pixel-shuffle convolution interpolates them; the others stay random. A
    short training then goes into detail from the first update on, rather than into passing the image through.

    Args:
        model: with the head 'pixelshuffle' or 'pixelshuffle+conv' of a scale that is a power of 2, for RGB.

    Raises:
        HatlibError: If it is another.
    """
    scale = getattr(model, "upscale", 0)
    shuffles = getattr(model, "upsampler", "") in ("pixelshuffle", "pixelshuffle+conv")
    fits = shuffles and scale > 1 and scale & (scale - 1) == 0
    if not fits or not (model.in_chans == model.out_chans == 3) or not isinstance(model.conv_after_body, nn.Conv2d):
        raise HatlibError(
            "model.interpolate=true is for RGB networks at x2, x4, x8 with upsampler='pixelshuffle' or "
            "'pixelshuffle+conv'; leave it out."
        )
    image = torch.arange(6)
    signs = torch.tensor([1.0, 1, 1, -1, -1, -1])
    first, last = model.conv_first, model.conv_last
    ups = [m for m in model.upsample if isinstance(m, nn.Conv2d)]
    model.conv_after_body.weight[image] = 0
    model.conv_after_body.bias[image] = 0
    first.weight[image] = 0
    first.weight[image, image % 3, 1, 1] = signs
    first.bias[image] = 0
    slope = 1.0  # of what comes between the trunk and the pixel shuffle for negative values
    if model.upsampler == "pixelshuffle":
        before, leaky = model.conv_before_upsample
        before.weight[image] = 0
        before.weight[image, image, 1, 1] = 1
        before.bias[image] = 0
        slope = leaky.negative_slope
    near = torch.tensor([5.0, 30, -3]) / 32  # quadratic interpolation a quarter of a pixel before the middle
    for conv in ups:
        phases = torch.stack([torch.outer(v, h) for v in (near, near.flip(0)) for h in (near, near.flip(0))])
        conv.weight[:24] = 0
        for c in range(6):
            conv.weight[4 * c : 4 * c + 4, c] = phases
        conv.bias[:24] = 0
    last.weight.zero_()
    last.weight[image % 3, image, 1, 1] = signs / (1 + slope)
    last.bias.zero_()

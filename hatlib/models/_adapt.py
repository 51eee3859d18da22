"""Weights for other channel counts than they were trained with.

First convolution: the kernels of the trained channels go to the new ones in turn (R, G, B, R, ...); where several meet
in one channel they are summed, where one serves several channels it is divided among them. So an image with the same
content in every channel gives the same features. Last convolution: its rows are averaged for one channel, else
repeated in turn. The mean follows. So a gray model gives the gray of what the color model makes of the gray image; not
to the last digit at the border, where the zeros that pad the first convolution stand for the means of the channels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["adapt_channels"]

RGB_MEAN = (0.4488, 0.4371, 0.4040)  # of DIV2K, as in the published configurations


def default_mean(channels: int) -> tuple[float, ...]:
    """What the published configurations subtract: DIV2K's mean from RGB, nothing from others."""
    return RGB_MEAN if channels == 3 else (0.0,) * channels


def adapt_channels(
    model: nn.Module, state_dict: dict[str, Tensor], source_mean: Sequence[float] | None = None
) -> dict[str, Tensor]:
    """Fits `conv_first` and the last convolution of the head to the model's `in_chans` and `out_chans`.

    Args:
        model: a `RestorationModel` to load the weights into. If it was given no mean, it takes the one that belongs
            to the weights.
        state_dict: weights in the model's own layout.
        source_mean: mean of the network that was trained; the published one if None.
    """
    first, last = "conv_first", last_convolution(state_dict)
    if f"{first}.weight" not in state_dict or last is None:
        return state_dict
    trained_in = state_dict[f"{first}.weight"].shape[1]
    # A pixel shuffle right behind the convolution takes several rows for a channel.
    rows = model.get_submodule(last).out_channels // model.out_chans
    trained_out = state_dict[f"{last}.weight"].shape[0] // rows
    if (trained_in, trained_out) == (model.in_chans, model.out_chans):
        return state_dict
    state_dict = dict(state_dict)
    trained_mean = torch.tensor(source_mean or default_mean(trained_in), dtype=torch.float64)

    if trained_in != model.in_chans:
        weight = state_dict[f"{first}.weight"]
        share = _shares(trained_in, model.in_chans)
        if model._arguments.get("mean") is None:
            model.set_mean((share.T @ trained_mean / share.sum(0)).tolist())
        adapted = torch.einsum("dcij,cn->dnij", weight.double(), share).to(weight)
        state_dict[f"{first}.weight"] = adapted.contiguous()
        # What the trained mean took away, less what this model's own takes away.
        own = torch.tensor(model.mean_values, dtype=torch.float64)
        taken, trained = _through(adapted, own), _through(weight, trained_mean)
        state_dict[f"{first}.bias"] = state_dict[f"{first}.bias"] + ((taken - trained) * model.img_range).to(weight)

    if trained_out != model.out_chans:
        for name in (f"{last}.weight", f"{last}.bias"):
            by_channel = state_dict[name].unflatten(0, (trained_out, rows))
            state_dict[name] = _repeat(by_channel, model.out_chans).flatten(0, 1).contiguous()
    # The mean is added where input and output have the same channels; elsewhere the last bias has to hold it.
    added = torch.tensor(model.mean_values) if model.in_chans == model.out_chans else torch.zeros(model.out_chans)
    before = trained_mean if trained_in == trained_out else torch.zeros(trained_out)
    bias = state_dict[f"{last}.bias"]
    lacking = (_repeat(before.double(), model.out_chans) - added.double()) * model.img_range
    state_dict[f"{last}.bias"] = bias + lacking.repeat_interleave(rows).to(bias)
    return state_dict


def last_convolution(state_dict: dict[str, Tensor]) -> str | None:
    """Name of the convolution that gives the image: `conv_last`, or the direct upsampler's only one."""
    return next((name for name in ("conv_last", "upsample.0") if f"{name}.weight" in state_dict), None)


def _shares(trained: int, count: int) -> Tensor:
    """Which part of a trained channel's kernel goes to which channel, (trained, count); the rows add up to one."""
    turns = torch.arange(max(trained, count))
    share = torch.zeros(trained, count, dtype=torch.float64)
    share[turns % trained, turns % count] = 1
    return share / share.sum(1, keepdim=True)


def _repeat(x: Tensor, count: int) -> Tensor:
    """(C, ...) -> (count, ...): the mean for one, else the entries in turn."""
    return x.mean(0, keepdim=True) if count == 1 else x[torch.arange(count) % len(x)]


def _through(weight: Tensor, mean: Tensor) -> Tensor:
    """What a convolution makes of a constant image, one value a channel."""
    return weight.double().sum((2, 3)) @ mean

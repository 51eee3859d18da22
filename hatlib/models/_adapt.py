"""Weights for other channel counts than they were trained with.

First convolution: trained channel c goes to the new channels c, c + n, ... (in turn, modulo), with shares s(c, k) that
add up to 1 for each c, so that

    w'(k) = sum over c of s(c, k) w(c).

An image with the same content in every channel then gives the same features. Last convolution: the rows of the trained
channels are averaged for one new channel, and repeated in turn otherwise. The mean follows: m'(k) is the mean of the
m(c) weighted by s(c, k). So a gray model returns the gray of what the color model returns for the gray image; not to
the last digit at the border, where the zeros that pad the first convolution stand for the means of the channels.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hatlib.errors import HatlibError

__all__ = ["adapt_channels", "default_mean"]

RGB_MEAN = (0.4488, 0.4371, 0.4040)  # of DIV2K, as in the published configurations


def default_mean(channels: int) -> tuple[float, ...]:
    """What the published configurations subtract: DIV2K's mean from RGB, nothing from other images."""
    return RGB_MEAN if channels == 3 else (0.0,) * channels


def adapt_channels(
    model: Any, state_dict: dict[str, Tensor], source_mean: Sequence[float] | None = None
) -> tuple[dict[str, Tensor], tuple[float, ...] | None]:
    """Fits `conv_first` and the last convolution of the head to the model's `in_chans` and `out_chans`.

    Args:
        model: a `RestorationModel` for the weights. It is left as it is.
        state_dict: weights in the model's own layout. They are left as they are.
        source_mean: mean of the network that was trained; the published one if None.

    Returns:
        The fitted weights, and the mean that belongs to them if the model was not given one (else None).

    Raises:
        HatlibError: if the channels differ and the head has no convolution that can be fitted.
    """
    first, last = "conv_first", model.head.last_conv
    if f"{first}.weight" not in state_dict:
        return state_dict, None
    trained_in = state_dict[f"{first}.weight"].shape[1]
    own = model.state_dict().keys()
    trunk = {name.partition(".")[0] for name in own} - set(model.head_names)
    same_head = {n for n in own if n.partition(".")[0] not in trunk} == {
        n for n in state_dict if n.partition(".")[0] not in trunk
    }
    if same_head and last is None and trained_in != model.in_chans:
        raise HatlibError(
            f"The head {type(model.head).__name__} has no last convolution that could be fitted from {trained_in} to "
            f"{model.in_chans} channels; load the weights with their own in_chans and out_chans."
        )
    if not same_head or last is None:  # a head that is new: only the first convolution has to fit
        return _adapt_first(model, dict(state_dict), trained_in, source_mean)
    # A pixel shuffle right after the convolution takes several rows per channel.
    rows = model.get_submodule(last).out_channels // model.out_chans
    trained_out, rest = divmod(state_dict[f"{last}.weight"].shape[0], rows)
    if rest or not trained_out:  # a head with the same names, but of another kind
        return _adapt_first(model, dict(state_dict), trained_in, source_mean)
    if (trained_in, trained_out) == (model.in_chans, model.out_chans):
        return state_dict, None
    trained_mean = torch.tensor(source_mean or default_mean(trained_in), dtype=torch.float64)
    state_dict, mean = _adapt_first(model, dict(state_dict), trained_in, source_mean)

    if trained_out != model.out_chans:
        for name in (f"{last}.weight", f"{last}.bias"):
            by_channel = state_dict[name].unflatten(0, (trained_out, rows))
            state_dict[name] = _repeat(by_channel, model.out_chans).flatten(0, 1).contiguous()
    # The mean is added where input and output have the same channels; elsewhere the last bias has to contain it.
    added = (
        torch.tensor(mean or model.mean_values) if model.in_chans == model.out_chans else torch.zeros(model.out_chans)
    )
    before = trained_mean if trained_in == trained_out else torch.zeros(trained_out)
    bias = state_dict[f"{last}.bias"]
    missing = (_repeat(before.double(), model.out_chans) - added.double()) * model.img_range
    state_dict[f"{last}.bias"] = bias + missing.repeat_interleave(rows).to(bias)
    return state_dict, mean


def _adapt_first(
    model: Any, state_dict: dict[str, Tensor], trained_in: int, source_mean: Sequence[float] | None
) -> tuple[dict[str, Tensor], tuple[float, ...] | None]:
    """Fits `conv_first` in the given dictionary; returns it and the mean that belongs to the weights."""
    if trained_in == model.in_chans:
        return state_dict, None
    mean: tuple[float, ...] | None = None
    weight, share = state_dict["conv_first.weight"], _shares(trained_in, model.in_chans)
    trained_mean = torch.tensor(source_mean or default_mean(trained_in), dtype=torch.float64)
    if model._arguments.get("mean") is None:
        mean = tuple((share.T @ trained_mean / share.sum(0)).tolist())
    adapted = torch.einsum("dcij,cn->dnij", weight.double(), share).to(weight)
    state_dict["conv_first.weight"] = adapted.contiguous()
    # Adds back what the trained mean subtracted, less what the new mean subtracts.
    own = torch.tensor(mean or model.mean_values, dtype=torch.float64)
    shift = _response(adapted, own) - _response(weight, trained_mean)
    state_dict["conv_first.bias"] = state_dict["conv_first.bias"] + (shift * model.img_range).to(weight)
    return state_dict, mean


def _shares(trained: int, count: int) -> Tensor:
    """Share of each trained channel that goes to each new channel, (trained, count); the rows add up to one."""
    turns = torch.arange(max(trained, count))
    share = torch.zeros(trained, count, dtype=torch.float64)
    share[turns % trained, turns % count] = 1
    return share / share.sum(1, keepdim=True)


def _repeat(x: Tensor, count: int) -> Tensor:
    """(C, ...) -> (count, ...): the mean for one, else the entries in turn."""
    return x.mean(0, keepdim=True) if count == 1 else x[torch.arange(count) % len(x)]


def _response(weight: Tensor, mean: Tensor) -> Tensor:
    """Response of a convolution to a constant image, one value per output channel."""
    return weight.double().sum((2, 3)) @ mean
